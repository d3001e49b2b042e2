"""Models with layers that keep states: Mamba 1 and 2, and those that mix such layers with attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..mixers import GatedDelta, Mamba1, Mamba2
from .family import ATTENTION, LLAMA_NAMES, QK_NORM, Config, Family, Names, where
from .granite import GRANITE_MOE_SHARED
from .llama import LLAMA
from .moe import QWEN2_MOE

MAX_POSITIONS = 32768
"""Of models that know no positions, and whose config.json names no limit."""


def _mamba1_names(module: str) -> Names:
    names = {"in_proj": "in_proj", "conv": "conv1d", "x_proj": "x_proj", "dt_proj": "dt_proj", "dt_bias": "dt_proj"}
    return {**_modules(module, names), **_state_names(module)}


def _mamba2_names(module: str) -> Names:
    names = {"in_proj": "in_proj", "conv": "conv1d", "gated_norm": "norm"}
    return {**_modules(module, names), **_state_names(module), "dt_bias": (module,)}


def _modules(module: str, names: Mapping[str, str]) -> Names:
    return {part: (f"{module}.{name}",) for part, name in names.items()}


def _state_names(module: str) -> Names:
    return {"a_log": (module,), "d": (module,), "out_proj": (f"{module}.out_proj",)}


def _mamba1(config: Config) -> Mamba1:
    hidden, rank = config["hidden_size"], config["step_rank"]
    channels, rank = config["expand"] * hidden, math.ceil(hidden / 16) if rank == "auto" else rank
    norms = config["normalizes_steps"]
    return Mamba1(channels, config["state_size"], config["conv_kernel"], rank, norms, config.get("step_norm_eps") or 1e-6)


def _mamba2(config: Config) -> Mamba2:
    heads, head_dim = config["num_state_heads"], config["state_head_dim"]
    head_dim = config["expand"] * config["hidden_size"] // heads if head_dim == "auto" else head_dim
    least, most = config["time_step_limit"] or (0.0, math.inf)
    sizes = config["num_state_groups"], config["state_size"], config["conv_kernel"]
    return Mamba2(heads, head_dim, *sizes, (_number(least), _number(most)))


def _number(found: Any) -> float:
    """Infinity, which JSON has not, is an object where the library writes it."""
    return float(found["__float__"] if isinstance(found, Mapping) else found)


def _gated_delta(config: Config) -> GatedDelta:
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    return GatedDelta(*(config[f"linear_{name}"] for name in names))


def _all_of(kind: str) -> Callable[[Config], Config]:
    return lambda config: {"layer_types": [kind] * config["num_hidden_layers"]}


def _refuse_mamba(config: Config) -> str | None:
    """Of what all of this file cannot be."""
    if config["hidden_act"] not in ("silu", "swish"):
        return f"its convolutions are followed by {config['hidden_act']!r}, not silu"
    return None


def _refuse_mamba2(config: Config) -> str | None:
    mixer = _mamba2(config)
    if mixer.num_channels != config["expand"] * config["hidden_size"]:
        return f"its {mixer.num_heads} heads of {mixer.head_dim} are not {config['expand']} times as wide as the model"
    if mixer.num_heads % mixer.num_groups:
        return f"its {mixer.num_heads} heads cannot be dealt out to {mixer.num_groups} groups"
    return _refuse_mamba(config)


def _refuse_delta(config: Config) -> str | None:
    mixer = _gated_delta(config)
    if mixer.num_v_heads % mixer.num_k_heads:
        return f"its {mixer.num_v_heads} heads of values cannot be dealt out to {mixer.num_k_heads} of keys"
    return _refuse_mamba(config)


_MAMBA_NORM: Names = {"attn_norm": ("norm",)}
_PURE = {
    "layer_norm_epsilon": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": MAX_POSITIONS,
    "num_attention_heads": 1,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
}
_PURE_FIELDS = {"rms_norm_eps": "layer_norm_epsilon"}


def _mamba_biases(config: Config) -> frozenset[str]:
    return where(config["use_bias"], "in_proj", "out_proj") | where(config["use_conv_bias"], "conv")


_MAMBA = Family(
    names={**_MAMBA_NORM, **_mamba1_names("mixer")},
    base="backbone.",
    embed="embeddings",
    final_norm="norm_f",
    fields={**_PURE_FIELDS, "step_rank": "time_step_rank"},
    defaults={**_PURE, "state_size": 16, "time_step_rank": "auto", "tie_word_embeddings": True},
    derived=lambda config: {**_all_of("mamba")(config), "normalizes_steps": False},
    biases=_mamba_biases,
    residual="single",
    mixers={"mamba": _mamba1},
    refuse=_refuse_mamba,
)
_STEP_NORMS = ("dt_norm", "b_norm", "c_norm")
_FALCON_MAMBA = replace(
    _MAMBA,
    names={**_MAMBA.names, **dict.fromkeys(_STEP_NORMS, ())},
    fields={**_MAMBA.fields, "step_norm_eps": "mixer_rms_eps"},
    defaults={**_MAMBA.defaults, "mixer_rms_eps": 1e-6},
    derived=lambda config: {**_all_of("mamba")(config), "normalizes_steps": True},
)
_MAMBA2 = Family(
    names={**_MAMBA_NORM, **_mamba2_names("mixer")},
    base="backbone.",
    embed="embeddings",
    final_norm="norm_f",
    fields={**_PURE_FIELDS, "num_state_heads": "num_heads", "state_head_dim": "head_dim", "num_state_groups": "n_groups"},
    defaults={
        **_PURE,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "state_size": 128,
        "time_step_limit": None,
        "tie_word_embeddings": False,
    },
    derived=_all_of("mamba2"),
    biases=_mamba_biases,
    residual="single",
    mixers={"mamba2": _mamba2},
    refuse=_refuse_mamba2,
)


def _jamba_layers(config: Config) -> Config:
    period, offset = config["attn_layer_period"], config["attn_layer_offset"]
    kinds = ["full_attention" if i % period == offset else "mamba" for i in range(config["num_hidden_layers"])]
    return {"layer_types": kinds, "normalizes_steps": True, "step_norm_eps": config["rms_norm_eps"]}


_JAMBA = Family(
    names={
        **ATTENTION,
        **_mamba1_names("mamba"),
        **{name: (f"mamba.{name.removesuffix('_norm')}_layernorm",) for name in _STEP_NORMS},
        "attn_norm": ("input_layernorm",),
        "mlp_norm": ("pre_ff_layernorm",),
        "gate_up": ("feed_forward.gate_proj", "feed_forward.up_proj"),
        "down": ("feed_forward.down_proj",),
        "router": ("feed_forward.router",),
        "w13": ("feed_forward.experts.{e}.gate_proj", "feed_forward.experts.{e}.up_proj"),
        "w2": ("feed_forward.experts.{e}.down_proj",),
    },
    final_norm="final_layernorm",
    fields={"state_size": "mamba_d_state", "conv_kernel": "mamba_d_conv", "expand": "mamba_expand", "step_rank": "mamba_dt_rank"},
    defaults={
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
        "num_experts": 16,
        "norm_topk_prob": False,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": "auto",
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
    derived=_jamba_layers,
    biases=lambda config: where(config["mamba_proj_bias"], "in_proj", "out_proj") | where(config["mamba_conv_bias"], "conv"),
    rotates=lambda config, layer, windowed: False,
    moe=lambda config, layer: config["num_experts"] > 1 and layer % config["expert_layer_period"] == config["expert_layer_offset"],
    mixers={"mamba": _mamba1},
    refuse=_refuse_mamba,
)
_GRANITE_KINDS = {"attention": "full_attention", "linear_attention": "mamba"}


def _granite_layers(config: Config) -> Config:
    kinds = config.get("layer_types") or config.get("layers_block_type") or ["mamba"] * config["num_hidden_layers"]
    found = {**GRANITE_MOE_SHARED.derived(config), "layer_types": [_GRANITE_KINDS.get(kind, kind) for kind in kinds]}
    return found if config.get("num_experts") else {**found, "intermediate_size": config["shared_intermediate_size"]}


_GRANITE_HYBRID = replace(
    GRANITE_MOE_SHARED,
    names={
        **GRANITE_MOE_SHARED.names,
        **_mamba2_names("mamba"),
        "gate_up": ("shared_mlp.input_linear",),
        "down": ("shared_mlp.output_linear",),
    },
    fields={
        **GRANITE_MOE_SHARED.fields,
        "num_state_heads": "mamba_n_heads",
        "state_head_dim": "mamba_d_head",
        "num_state_groups": "mamba_n_groups",
        "state_size": "mamba_d_state",
        "conv_kernel": "mamba_d_conv",
        "expand": "mamba_expand",
    },
    defaults={
        **GRANITE_MOE_SHARED.defaults,
        "shared_intermediate_size": 1024,
        "position_embedding_type": None,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_head": "auto",
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "time_step_limit": None,
    },
    derived=_granite_layers,
    biases=lambda config: (
        GRANITE_MOE_SHARED.biases(config)
        | where(config["mamba_proj_bias"], "in_proj", "out_proj")
        | where(config["mamba_conv_bias"], "conv")
    ),
    rotates=lambda config, layer, windowed: config["position_embedding_type"] == "rope",
    moe=lambda config, layer: bool(config["num_experts"]),
    mixers={"mamba": _mamba2},
    refuse=_refuse_mamba2,
)


def _delta_layers(config: Config) -> Config:
    every = config["full_attention_interval"]
    kinds = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(config["num_hidden_layers"])]
    return {"layer_types": config.get("layer_types") or kinds}


_DELTA_NAMES: Names = {
    "conv": ("linear_attn.conv1d",),
    "a_log": ("linear_attn",),
    "dt_bias": ("linear_attn",),
    "gated_norm": ("linear_attn.norm",),
    "out_proj": ("linear_attn.out_proj",),
}
_DELTA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "attention_bias": False,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_SPARSE_DEFAULTS = {
    "num_key_value_heads": 2,
    "norm_topk_prob": True,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
_QWEN3_NEXT = replace(
    QWEN2_MOE,
    names={
        **QWEN2_MOE.names,
        **QK_NORM,
        **_DELTA_NAMES,
        "in_proj": ("linear_attn.in_proj_qkvz",),
        "gates_proj": ("linear_attn.in_proj_ba",),
    },
    defaults={**_DELTA_DEFAULTS, **_SPARSE_DEFAULTS, "decoder_sparse_step": 1, "mlp_only_layers": None},
    derived=_delta_layers,
    biases=lambda config: where(config["attention_bias"], "qkv", "o"),
    norm_offset=1.0,
    qk_norm="head",
    windowed=lambda config, layer: False,
    mixers={"linear_attention": _gated_delta},
    interleaved_mixer=True,
    gated_attention=True,
    refuse=_refuse_delta,
)
_QWEN3_5 = replace(
    LLAMA,
    names={
        **LLAMA_NAMES,
        **QK_NORM,
        **_DELTA_NAMES,
        "in_proj": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
        "gates_proj": ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    },
    renames=(("model.language_model.", "model."),),
    ignored=(*LLAMA.ignored, r"^model\.visual\."),
    defaults={**_DELTA_DEFAULTS, "num_key_value_heads": 4},
    derived=_delta_layers,
    biases=lambda config: where(config["attention_bias"], "qkv", "o"),
    norm_offset=1.0,
    qk_norm="head",
    mixers={"linear_attention": _gated_delta},
    gated_attention=True,
    refuse=_refuse_delta,
)
_QWEN3_5_MOE = replace(
    _QWEN3_5,
    names={**QWEN2_MOE.names, **_QWEN3_5.names},
    packed_experts={"w13": ("mlp.experts.gate_up_proj",), "w2": ("mlp.experts.down_proj",)},
    defaults={**_DELTA_DEFAULTS, **_SPARSE_DEFAULTS, "num_experts": 256, "num_experts_per_tok": 8},
    moe=lambda config, layer: True,
    routing=QWEN2_MOE.routing,
)

FAMILIES = {
    "mamba": _MAMBA,
    "falcon_mamba": _FALCON_MAMBA,
    "mamba2": _MAMBA2,
    "jamba": _JAMBA,
    "granitemoehybrid": _GRANITE_HYBRID,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5_MOE,
    "qwen3_5_moe_text": _QWEN3_5_MOE,
    "qwen3_5_text": _QWEN3_5,
}
