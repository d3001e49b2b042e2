"""For every op of the plan: a deliberately wrong impl, chosen by name, changes what the engine returns."""

from __future__ import annotations

import ast
import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

import framework
from framework import LLM, EngineConfig, LoRARequest, SamplingParams
from framework.config import CacheConfig, ModelConfig
from framework.speculation.config import SpeculativeConfig
from triton_kernels.ops import OPS

from .models.examples import EXAMPLES
from .tiny_adapters import write_tiny_adapter

PLUGIN = str(Path(__file__).parent / "plugins" / "wrong.py")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 400,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
LAYER_NORM = {
    **SMALL,
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "num_key_value_heads": 4,
    "rotary_pct": 0.5,
    "hidden_act": "gelu",
    "use_parallel_residual": True,
    "layer_norm_eps": 1e-5,
}
GELU = {
    **SMALL,
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
MOE = {
    **SMALL,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
LATENT = {
    **SMALL,
    "model_type": "minicpm3",
    "architectures": ["MiniCPM3ForCausalLM"],
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
STATES: dict[str, Any] = {
    name: {**EXAMPLES[name].library_config().to_dict(), "initializer_range": 0.3, "dtype": "float32"}
    for name in ("mamba", "mamba2", "qwen3-next")
}
RIGHT = {"qk_norm_rotary_kv_write": "torch"}
"""Choices of ops that ``auto`` may leave to others."""
MODELS = {
    "layer_norm": LAYER_NORM,
    "gelu_and_mul": GELU,
    "moe_route": MOE,
    "moe_experts": MOE,
    "head_linear": LATENT,
    "merge_attention": LATENT,
    "causal_conv1d": STATES["mamba"],
    "selective_scan": STATES["mamba"],
    "ssd_scan": STATES["mamba2"],
    "gated_delta_rule": STATES["qwen3-next"],
    "gated_rms_norm": STATES["qwen3-next"],
}
PROMPTS: list[Any] = [{"prompt_token_ids": list(range(10, 10 + n))} for n in (3, 9, 21)]


@functools.cache
def adapter() -> LoRARequest:
    return write_tiny_adapter(Path(tempfile.mkdtemp()) / "adapter", 1, targets=["layers.1.self_attn.o_proj"])


def generate(op: str, choice: str) -> list[Any]:
    architecture = MODELS.get(op)
    model = ModelConfig(load_format="dummy", architecture=architecture, dtype="float32") if architecture else ModelConfig("tiny")
    model.latent_prefill = "expanded" if op == "merge_attention" else "absorbed"
    config = EngineConfig(model, CacheConfig(block_size=4, num_blocks=128), kernels={op: choice}, plugins=[PLUGIN], num_threads=1)
    if op in ("filter_logits", "verify_draft"):
        config.speculative_config = SpeculativeConfig("draft_model", 2, "tiny-draft", rejection_sample_method="standard")
    config.lora.enabled = op.startswith("lora_")
    llm = LLM(config)
    greedy = op not in ("copy_blocks", "sample", "filter_logits", "verify_draft")
    params = SamplingParams(
        n=1 if greedy else 3,
        temperature=0 if greedy else 1,
        top_p=0.9 if op == "filter_logits" else 1,
        seed=3,
        max_tokens=12,
        detokenize=False,
        ignore_eos=True,
        logprobs=1 if op == "gather_logprobs" else None,
        frequency_penalty=1.5 if op == "apply_penalties" else 0,
    )
    outputs = llm.generate(PROMPTS, params, use_tqdm=False, lora_request=adapter() if config.lora.enabled else None)
    report = llm.plan()[op]
    assert report["calls"] > 0
    assert choice == "auto" or report["impl"] == choice
    return [(c.token_ids, c.cumulative_logprob) for output in outputs for c in output.outputs]


@functools.cache
def right(op: str) -> list[Any]:
    return generate(op, RIGHT.get(op, "auto"))


def bound_ops() -> list[str]:
    """Ops that models and samplers bind: those named in a module that binds some. Others serve no request of these models."""
    sources = [path.read_text() for path in Path(framework.__file__).parent.rglob("*.py")]
    binding = [ast.walk(ast.parse(source)) for source in sources if "plan.bind(" in source]
    found = {node.value for nodes in binding for node in nodes if isinstance(node, ast.Constant)} & set(OPS)
    of_ranks = {"all_reduce", "all_gather", "reduce_scatter", "moe_exchange", "all_reduce_add_rms_norm"}  # tests/distributed
    return sorted(found - of_ranks)


@pytest.mark.parametrize("op", bound_ops())
def test_a_wrong_impl_shows(op: str) -> None:
    assert generate(op, "wrong") != right(op)
