"""The whole engine on Triton kernels, in the interpreter: the tokens are those of the reference kernels."""

from __future__ import annotations

import pytest

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CacheConfig, ModelConfig, SchedulerConfig

ARCHITECTURE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}
QWEN3 = {**ARCHITECTURE, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
DEEPSEEK = {
    **ARCHITECTURE,
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
}
FUSED = "qk_norm_rotary_kv_write"
TRITON = {"default": "triton", "paged_attention_decode": "splitkv"}
SEPARATE = TRITON | {FUSED: "none"}
REFERENCE = {"default": "reference"}
PROMPTS = [{"prompt_token_ids": list(range(20, 20 + n))} for n in (3, 13)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=3, detokenize=False, frequency_penalty=1.0, logprobs=1, ignore_eos=True),
    SamplingParams(temperature=1, top_k=20, seed=5, max_tokens=3, detokenize=False, ignore_eos=True),
]


def make_llm(kernels: dict[str, str], cache_dtype: str, architecture: dict[str, object]) -> LLM:
    model = ModelConfig(architecture=architecture, load_format="dummy", dtype="float32")
    # A budget of 8 cuts the longer prompt in two.
    scheduler = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8)
    cache = CacheConfig(block_size=16, num_blocks=8, dtype=cache_dtype)
    return LLM(EngineConfig(model, cache, scheduler, kernels=kernels, interpret=True))


def generate(
    kernels: dict[str, str], cache_dtype: str = "auto", architecture: dict[str, object] = ARCHITECTURE
) -> tuple[list[list[int]], dict[str, int]]:
    llm = make_llm(kernels, cache_dtype, architecture)
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs], {op: entry["calls"] for op, entry in llm.plan().items()}


@pytest.mark.parametrize("cache_dtype", ["auto", "int8", "float8_e4m3fn"])
def test_tokens_are_those_of_the_reference(cache_dtype: str) -> None:
    tokens, calls = generate(TRITON, cache_dtype)
    assert tokens == generate(REFERENCE, cache_dtype)[0]
    assert all(calls[op] > 0 for op in calls if op != "copy_blocks")


def test_fused_and_separate_kernels_with_norms_of_heads() -> None:
    (fused, fused_calls), (separate, separate_calls) = (generate(kernels, architecture=QWEN3) for kernels in (TRITON, SEPARATE))
    assert fused == separate == generate(REFERENCE, architecture=QWEN3)[0]
    assert fused_calls[FUSED] == separate_calls["rotary"] == separate_calls["kv_cache_write"] > 0
    assert FUSED not in separate_calls and not {"rotary", "kv_cache_write"} & set(fused_calls)


def test_latent_attention_and_groups_of_experts() -> None:
    tokens, calls = generate(TRITON, architecture=DEEPSEEK)
    assert tokens == generate(REFERENCE, architecture=DEEPSEEK)[0]
    assert calls["head_linear"] == 2 * calls["kv_cache_write"] > 0 and calls["moe_route"] > 0


def test_in_the_interpreter_the_fused_kernel_is_the_best() -> None:
    assert FUSED in make_llm({}, "auto", ARCHITECTURE).plan()
