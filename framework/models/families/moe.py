"""Mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .deepseek import EXPERTS as V3_EXPERTS
from .deepseek import v3_routing
from .family import ATTENTION, LLAMA_NAMES, PRE_NORMS, QK_NORM, Config, where
from .llama import ERNIE, HUNYUAN, LLAMA, QWEN3
from .olmo import OLMO2

_EXPERTS = {
    "router": ("mlp.gate",),
    "w13": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
    "w2": ("mlp.experts.{e}.down_proj",),
}
_MIXTRAL_EXPERTS = {
    "router": ("block_sparse_moe.gate",),
    "w2": ("block_sparse_moe.experts.{e}.w2",),
    "w13": ("block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3"),
}


def qwen_moe_layer(config: Config, layer: int) -> bool:
    dense = layer in (config["mlp_only_layers"] or ()) or (layer + 1) % config["decoder_sparse_step"] != 0
    return not dense and config["num_experts"] > 0


_MIXTRAL = replace(
    LLAMA,
    names={**LLAMA_NAMES, **_MIXTRAL_EXPERTS},
    fields={"num_experts": "num_local_experts"},
    defaults={
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "default_theta": 1e6,
        "norm_topk_prob": True,
        "attention_bias": False,
    },
    moe=lambda config, layer: True,
)
QWEN3_MOE = replace(
    QWEN3,
    names={**QWEN3.names, **_EXPERTS},
    fields={"num_experts": "num_local_experts"},
    defaults={
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": None,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "norm_topk_prob": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
    },
    windowed=lambda config, layer: bool(config["use_sliding_window"]),
    moe=qwen_moe_layer,
)

QWEN2_MOE = replace(
    QWEN3_MOE,
    names={
        **LLAMA_NAMES,
        **_EXPERTS,
        "shared_gate_up": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        "shared_down": ("mlp.shared_expert.down_proj",),
        "shared_gate": ("mlp.shared_expert_gate",),
    },
    fields={},
    defaults={
        **{name: value for name, value in QWEN3_MOE.defaults.items() if name != "attention_bias"},
        "qkv_bias": True,
        "max_window_layers": 28,
        "sliding_window": 4096,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    biases=lambda config: where(config["qkv_bias"], "qkv"),
    qk_norm="",
    windowed=lambda config, layer: bool(config["use_sliding_window"]) and layer < config["max_window_layers"] and layer % 2 == 0,
    routing=lambda config: {"shared_size": config["shared_expert_intermediate_size"], "shared_gate": True},
)
_OLMOE = replace(
    OLMO2,
    names={**LLAMA_NAMES, **_EXPERTS, **QK_NORM},
    fields={},
    defaults={
        **OLMO2.defaults,
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    residual="pre",
    moe=lambda config, layer: True,
    refuse=lambda config: "it clips queries and keys after their norms (clip_qkv)" if config.get("clip_qkv") else None,
)
_FLEX_OLMO = replace(
    _OLMOE,
    names={**OLMO2.names, **_EXPERTS},
    defaults={**_OLMOE.defaults, "default_theta": 5e5, "rms_norm_eps": 1e-6, "num_experts": 7, "num_experts_per_tok": 5},
    residual="after",
)
_V3_LIKE = {**LLAMA.defaults, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
_GLM4_MOE = replace(
    LLAMA,
    names={**LLAMA_NAMES, **V3_EXPERTS, "route_bias": ("mlp.gate",)},
    fields={"num_experts": "n_routed_experts"},
    defaults={
        **_V3_LIKE,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "use_qk_norm": False,
    },
    biases=lambda config: where(config["attention_bias"], "qkv"),
    variant=lambda config: (
        {"names": {**LLAMA_NAMES, **V3_EXPERTS, **QK_NORM, "route_bias": ("mlp.gate",)}, "qk_norm": "head"}
        if config["use_qk_norm"]
        else {}
    ),
    moe=lambda config, layer: layer >= config["first_k_dense_replace"],
    routing=v3_routing,
)
_DOTS1 = replace(
    _GLM4_MOE,
    names={**_GLM4_MOE.names, **QK_NORM},
    defaults={
        **_V3_LIKE,
        "n_shared_experts": None,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "sliding_window": 4096,
        "max_window_layers": 62,
        "num_key_value_heads": 32,
        "moe_intermediate_size": 1408,
    },
    biases=lambda config: where(config["attention_bias"], "qkv", "o"),
    variant=lambda config: {},
    qk_norm="head",
    windowed=lambda config, layer: layer >= config["max_window_layers"],
)
_MINIMAX_M2 = replace(
    _MIXTRAL,
    names={**ATTENTION, **PRE_NORMS, **QK_NORM, **_MIXTRAL_EXPERTS, "route_bias": ("block_sparse_moe",)},
    defaults={
        **_MIXTRAL.defaults,
        "default_theta": 5e6,
        "rms_norm_eps": 1e-6,
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
    },
    qk_norm="width",
    routing=lambda config: {"scoring": "sigmoid", "bias": True},
)


def _hunyuan_sizes(config: Config) -> Config:
    """Lists have a number for each layer."""
    chosen = config["moe_topk"]
    return {
        "num_experts_per_tok": chosen[0] if isinstance(chosen, list) else chosen,
        "moe_intermediate_size": config["intermediate_size"],
        "norm_topk_prob": True,
    }


def _hunyuan_refusal(config: Config) -> str | None:
    for name in ("num_experts", "moe_topk"):
        value = config[name]
        if isinstance(value, list) and (name == "num_experts" or len(set(value)) != 1):
            return f"its layers differ in {name}"
    return None


_HUNYUAN_MOE = replace(
    HUNYUAN,
    names={
        **HUNYUAN.names,
        **_EXPERTS,
        "router": ("mlp.gate.wg",),
        "shared_gate_up": ("mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj"),
        "shared_down": ("mlp.shared_mlp.down_proj",),
    },
    defaults={**HUNYUAN.defaults, "num_experts": 1, "moe_topk": 1},
    derived=_hunyuan_sizes,
    moe=lambda config, layer: True,
    routing=lambda config: {"shared_size": config["intermediate_size"], "float32_router": True},
    refuse=_hunyuan_refusal,
)


def _ernie_layer(config: Config, layer: int) -> bool:
    last = config["moe_layer_end_index"]
    first, every = config["moe_layer_start_index"], config["moe_layer_interval"]
    return (layer + 1) % every == 0 and first <= layer <= (config["num_hidden_layers"] - 1 if last == -1 else last)


def _ernie_routing(config: Config) -> Mapping[str, Any]:
    shared = config["moe_intermediate_size"] * config["moe_num_shared_experts"]
    return {"shared_size": shared, "bias": True, "float32_router": True}


_ERNIE_MOE = replace(
    ERNIE,
    names={**ERNIE.names, **V3_EXPERTS, "route_bias": ("mlp.moe_statics",)},
    fields={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    defaults={
        **{name: value for name, value in ERNIE.defaults.items() if name != "head_dim"},
        "num_key_value_heads": 4,
        "norm_topk_prob": True,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    moe=_ernie_layer,
    routing=_ernie_routing,
    refuse=lambda config: "its experts have biases (use_bias)" if config["use_bias"] else None,
)

_GPT_OSS = replace(
    LLAMA,
    names={
        **ATTENTION,
        **PRE_NORMS,
        "sinks": ("self_attn",),
        "router": ("mlp.router",),
        "w13": ("mlp.experts.gate_up_proj",),
        "w2": ("mlp.experts.down_proj",),
    },
    fields={"num_experts": "num_local_experts"},
    defaults={
        **LLAMA.defaults,
        "default_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "attention_bias": True,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    biases=lambda config: where(config["attention_bias"], "qkv", "o") | {"router", "w13", "w2"},
    windowed=lambda config, layer: layer % 2 == 0,
    moe=lambda config, layer: True,
    routing=lambda config: {"limit": config["swiglu_limit"], "alpha": config["swiglu_alpha"]},
    expert_tensor="",
    expert_layouts={"w13": "transposed", "w2": "transposed"},
    alternating_experts=True,
)


def _dbrx_sections(config: Config) -> Config:
    """What stands in sections of its config."""
    attention, experts = ({**_DBRX_SECTIONS[name], **(config.get(name) or {})} for name in _DBRX_SECTIONS)
    return {
        "clip_qkv": attention["clip_qkv"],
        "num_key_value_heads": attention["kv_n_heads"],
        "rope_theta": attention.get("rope_theta"),
        "hidden_act": (experts["ffn_act_fn"] or {"name": "silu"})["name"],
        "intermediate_size": experts["ffn_hidden_size"],
        "num_experts": experts["moe_num_experts"],
        "num_experts_per_tok": experts["moe_top_k"],
        "norm_topk_prob": experts["moe_normalize_expert_weights"] is not None,
    }


def _dbrx_refusal(config: Config) -> str | None:
    norm = (config.get("ffn_config") or {}).get("moe_normalize_expert_weights", 1)
    return None if norm in (None, 1) else f"weights of experts are divided by their {norm}-norm, not their sum"


_DBRX_SECTIONS: Mapping[str, Config] = {
    "attn_config": {"clip_qkv": None, "kv_n_heads": 1},
    "ffn_config": {
        "ffn_act_fn": None,
        "ffn_hidden_size": 3584,
        "moe_num_experts": 4,
        "moe_top_k": 1,
        "moe_normalize_expert_weights": 1.0,
    },
}
_DBRX = replace(
    LLAMA,
    names={
        "attn_norm": ("norm_attn_norm.norm_1",),
        "qkv": ("norm_attn_norm.attn.Wqkv",),
        "o": ("norm_attn_norm.attn.out_proj",),
        "mlp_norm": ("norm_attn_norm.norm_2",),
        "router": ("ffn.router.layer",),
        "w13": ("ffn.experts.mlp.w1", "ffn.experts.mlp.v1"),
        "w2": ("ffn.experts.mlp.w2",),
    },
    base="transformer.",
    embed="wte",
    layers="blocks",
    final_norm="norm_f",
    fields={
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
    },
    defaults={"norm_eps": 1e-5, "max_seq_len": 2048},
    derived=_dbrx_sections,
    biases=lambda config: frozenset(),
    norm="layer",
    norm_bias=False,
    moe=lambda config, layer: True,
    expert_tensor="",
    expert_layouts={"w13": "flat", "w2": "flat_transposed"},
    refuse=_dbrx_refusal,
)

FAMILIES = {
    "mixtral": _MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "olmoe": _OLMOE,
    "flex_olmo": _FLEX_OLMO,
    "glm4_moe": _GLM4_MOE,
    "dots1": _DOTS1,
    "minimax_m2": _MINIMAX_M2,
    "gpt_oss": _GPT_OSS,
    "dbrx": _DBRX,
    "hunyuan_v1_moe": _HUNYUAN_MOE,
    "ernie4_5_moe": _ERNIE_MOE,
}
