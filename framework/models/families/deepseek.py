"""DeepSeek-V2 and V3, and MiniCPM3: latent attention; groups of experts, some shared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..rope import read_rope
from .family import LLAMA_NAMES, Config, Family, where
from .granite import MINICPM

_LATENT = {"kv_a_norm": ("self_attn.kv_a_layernorm",), "kv_b": ("self_attn.kv_b_proj",)}
_QUERIES = {"qkv": ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa")}
_LATENT_QUERIES = {
    "qkv": ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    "q_a_norm": ("self_attn.q_a_layernorm",),
    "q_b": ("self_attn.q_b_proj",),
}
EXPERTS = {
    "router": ("mlp.gate",),
    "w13": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
    "w2": ("mlp.experts.{e}.down_proj",),
    "shared_gate_up": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    "shared_down": ("mlp.shared_experts.down_proj",),
}


def _scale(config: Config) -> Config:
    """Of the scores, as ``attention_multiplier``, and the rotated part as ``head_dim``. Scaling that stretches positions (yarn)
    multiplies scores by the square of a factor of its own."""
    rope_dim = config["qk_rope_head_dim"]
    rope = read_rope(config, rope_dim, "full_attention")
    scale, weight, factor = 1.0, rope.parameters.get("mscale_all_dim") or 0.0, rope.parameters.get("factor") or 1.0
    if rope.kind != "default" and weight and factor > 1:
        scale = (0.1 * weight * math.log(factor) + 1) ** 2
    return {"head_dim": rope_dim, "attention_multiplier": scale * (config["qk_nope_head_dim"] + rope_dim) ** -0.5}


def _queries(config: Config) -> Mapping[str, Any]:
    """Queries have a latent of their own, or none."""
    return _QUERIES if config["q_lora_rank"] is None else _LATENT_QUERIES


def _refusal(config: Config) -> str | None:
    if config["attention_bias"] and config["q_lora_rank"] is None:
        return "its attention has biases but no latent of queries, where only some would have them"
    every = config.get("moe_layer_freq") or 1
    return f"it has a mixture of experts in every {every}. layer" if every != 1 else None


def _v2_refusal(config: Config) -> str | None:
    method = config["topk_method"]
    if method not in _V2_METHODS:
        return f"topk_method {method!r} is none of {', '.join(_V2_METHODS)}"
    return _other_scores(config, "softmax") or _refusal(config)


def _v3_refusal(config: Config) -> str | None:
    return _other_scores(config, "sigmoid") or _refusal(config)


def _other_scores(config: Config, usual: str) -> str | None:
    given = config.get("scoring_func") or usual
    return None if given == usual else f"scoring_func {given!r} is not {usual}"


_V2_METHODS = ("greedy", "group_limited_greedy")


def _v2_routing(config: Config) -> Mapping[str, Any]:
    """Its router never divides weights by their sum, whatever norm_topk_prob says."""
    groups: dict[str, Any] = {}
    if config["topk_method"] == "group_limited_greedy":
        groups = {"num_groups": config["n_group"], "top_groups": config["topk_group"]}
    return {**groups, **_shared(config), "renormalize": False}


def v3_routing(config: Config) -> Mapping[str, Any]:
    groups = {"num_groups": config["n_group"], "top_groups": config["topk_group"], "group_score": "top2"}
    return {**groups, **_shared(config), "scoring": "sigmoid", "bias": True}


def _shared(config: Config) -> Mapping[str, Any]:
    shared = config["moe_intermediate_size"] * (config["n_shared_experts"] or 0)
    return {"scaling": config["routed_scaling_factor"], "shared_size": shared, "float32_router": True}


def _names(config: Config, names: Mapping[str, tuple[str, ...]]) -> Mapping[str, Any]:
    return {"names": {**names, **_queries(config)}}


_V2_NAMES = {**LLAMA_NAMES, **_LATENT, **EXPERTS}
_V3_NAMES = {**_V2_NAMES, "route_bias": ("mlp.gate",)}
_DEFAULTS = {
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
_V2 = Family(
    _V2_NAMES,
    fields={"num_experts": "n_routed_experts"},
    defaults={
        **_DEFAULTS,
        "mlp_bias": False,
        "first_k_dense_replace": 0,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "moe_intermediate_size": 1407,
    },
    derived=_scale,
    biases=lambda config: (
        where(config["attention_bias"], "qkv", "o") | where(config["mlp_bias"], "gate_up", "down", "shared_gate_up", "shared_down")
    ),
    variant=lambda config: _names(config, _V2_NAMES),
    rotary_style="gptj",
    latent=True,
    moe=lambda config, layer: bool(config["num_experts"]) and layer >= config["first_k_dense_replace"],
    routing=_v2_routing,
    refuse=_v2_refusal,
)
_V3 = replace(
    _V2,
    names=_V3_NAMES,
    defaults={
        **_DEFAULTS,
        "first_k_dense_replace": 3,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "max_position_embeddings": 4096,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
    },
    biases=lambda config: where(config["attention_bias"], "qkv", "o"),
    variant=lambda config: {**_names(config, _V3_NAMES), "rotary_style": "gptj" if config["rope_interleave"] else "neox"},
    routing=v3_routing,
    refuse=_v3_refusal,
)
_MINICPM3 = replace(
    _V2,
    names={**LLAMA_NAMES, **_LATENT},
    fields={},
    defaults={
        **_DEFAULTS,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "kv_lora_rank": 256,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": None,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "tie_word_embeddings": True,
    },
    derived=lambda config: {**MINICPM.derived(config), **_scale(config), **_value_dim(config)},
    biases=lambda config: where(config["attention_bias"], "qkv", "o") | where(config["mlp_bias"], "gate_up", "down"),
    variant=lambda config: _names(config, {**LLAMA_NAMES, **_LATENT}),
    rotary_style="neox",
    moe=lambda config, layer: False,
    refuse=_refusal,
)


def _value_dim(config: Config) -> Config:
    return {"v_head_dim": config["v_head_dim"] or config["hidden_size"] // config["num_attention_heads"]}


FAMILIES = {"deepseek_v2": _V2, "deepseek_v3": _V3, "minicpm3": _MINICPM3}
