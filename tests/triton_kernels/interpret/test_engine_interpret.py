"""The whole engine on Triton kernels, in the interpreter: the tokens are those of the reference kernels."""

from __future__ import annotations

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from triton_kernels.ops import OPS

ARCHITECTURE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 64,
    "initializer_range": 0.3, "tie_word_embeddings": False, "eos_token_id": 1,
}  # fmt: skip
TRITON = dict.fromkeys(OPS, "triton") | {"paged_attention_prefill": "pointer", "paged_attention_decode": "splitkv"}
PROMPTS = [{"prompt_token_ids": list(range(20, 20 + n))} for n in (3, 13)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=3, detokenize=False, frequency_penalty=1.0, logprobs=1, ignore_eos=True),
    SamplingParams(temperature=1, top_k=20, seed=5, max_tokens=3, detokenize=False, ignore_eos=True),
]


def generate(kernels: dict[str, str]) -> tuple[list[list[int]], dict[str, int]]:
    model = ModelConfig(architecture=ARCHITECTURE, load_format="dummy", dtype="float32")
    # A budget of 8 cuts the longer prompt in two.
    scheduler = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8)
    llm = LLM(EngineConfig(model, CacheConfig(block_size=16, num_blocks=8), scheduler, kernels=kernels, interpret=True))
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs], {op: entry["calls"] for op, entry in llm.plan().items()}


def test_tokens_are_those_of_the_reference() -> None:
    tokens, calls = generate(TRITON)
    assert tokens == generate(dict.fromkeys(OPS, "reference"))[0]
    assert all(calls[op] > 0 for op in calls if op != "copy_blocks")
