"""Models of block diffusion: SDAR (arXiv 2510.06303) in the shapes of Qwen3, LLaDA2 (arXiv 2512.15745) in those of Ling 2. What a
config.json leaves out is as in the configuration_llada2_moe.py beside the published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .deepseek import v3_routing
from .family import Config, where
from .llama import LLAMA, QWEN3
from .moe import QWEN3_MOE

_SDAR_CANVAS = {"block_size": 4, "mask_token_id": 151669, "block_causal_prompt": True}


def _window(config: Config) -> str | None:
    return "it denoises within a window (use_sliding_window)" if config["use_sliding_window"] else None


def _llada2_routing(config: Config) -> Mapping[str, Any]:
    return {**v3_routing(config), "bias": config["moe_router_enable_expert_bias"]}


def _llada2_refusal(config: Config) -> str | None:
    if config["score_function"] != "sigmoid":
        return f"score_function {config['score_function']!r} is not sigmoid"
    return None if config["use_qk_norm"] else "its queries and keys have no norms (use_qk_norm)"


_SDAR = replace(QWEN3, defaults={**QWEN3.defaults, **_SDAR_CANVAS}, denoises=True, refuse=_window)
_SDAR_MOE = replace(QWEN3_MOE, fields={}, defaults={**QWEN3_MOE.defaults, **_SDAR_CANVAS}, denoises=True, refuse=_window)
_LLADA2 = replace(
    LLAMA,
    embed="word_embeddings",
    names={
        "qkv": ("attention.query_key_value",),
        "o": ("attention.dense",),
        "q_norm": ("attention.query_layernorm",),
        "k_norm": ("attention.key_layernorm",),
        "attn_norm": ("input_layernorm",),
        "mlp_norm": ("post_attention_layernorm",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
        "router": ("mlp.gate",),
        "route_bias": ("mlp.gate",),
        "w13": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
        "w2": ("mlp.experts.{e}.down_proj",),
        "shared_gate_up": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "shared_down": ("mlp.shared_experts.down_proj",),
    },
    fields={"n_shared_experts": "num_shared_experts"},
    defaults={
        **LLAMA.defaults,
        "block_size": 32,
        "mask_token_id": 156895,
        "block_causal_prompt": True,
        "default_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_shared_experts": 0,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 0,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_bias": True,
    },
    biases=lambda config: where(config["use_qkv_bias"], "qkv") | where(config["use_bias"], "o"),
    qk_norm="head",
    denoises=True,
    moe=lambda config, layer: layer >= config["first_k_dense_replace"],
    routing=_llada2_routing,
    route_bias="expert_bias",
    refuse=_llada2_refusal,
)

REFUSED: Mapping[str, str] = {
    "llada": "in LLaDA 1 every token sees all others, also those after it, so that nothing of a pass holds for the next; models "
    "that generate block by block are served (sdar, llada2_moe)"
}
"""model_type -> why its diffusion is not served."""
LIBRARY_DENOISERS = ("diffusion_gemma",)
"""Types of block diffusion that the library's modules serve."""
FAMILIES = {"sdar": _SDAR, "sdar_moe": _SDAR_MOE, "llada2_moe": _LLADA2}
