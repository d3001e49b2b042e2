"""Llama 4, its text part: chunked layers that rotate, every fourth that does not; experts that a token enters weighted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .family import ATTENTION, PRE_NORMS, Config
from .llama import LLAMA, rotates_most

_NAMES = {
    **ATTENTION,
    **PRE_NORMS,
    "gate_up": ("feed_forward.gate_proj", "feed_forward.up_proj"),
    "down": ("feed_forward.down_proj",),
    "router": ("feed_forward.router",),
    "w13": ("feed_forward.experts.gate_up_proj",),
    "w2": ("feed_forward.experts.down_proj",),
    "shared_gate_up": ("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
    "shared_down": ("feed_forward.shared_expert.down_proj",),
}


def _variant(config: Config) -> Mapping[str, Any]:
    """Norms of queries and keys have no weights."""
    return {"names": {**_NAMES, "q_norm": (), "k_norm": ()}, "qk_norm": "head"} if config["use_qk_norm"] else {}


def _moe(config: Config, layer: int) -> bool:
    listed = config["moe_layers"]
    return (layer + 1) % config["interleave_moe_layer_step"] == 0 if listed is None else layer in listed


def _temperature(config: Config, layer: int) -> tuple[float, float] | None:
    tuned = config["attn_temperature_tuning"] and not rotates_most(config, layer)
    return (config["floor_scale"], config["attn_scale"]) if tuned else None


_LLAMA4 = replace(
    LLAMA,
    names=_NAMES,
    renames=(("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")),
    ignored=(*LLAMA.ignored, r"^vision_model\.", r"^multi_modal_projector\."),
    fields={"num_experts": "num_local_experts"},
    defaults={
        **LLAMA.defaults,
        "default_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "norm_topk_prob": False,
        "moe_layers": None,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
    derived=lambda config: {
        "intermediate_size": config["intermediate_size_mlp"],
        "moe_intermediate_size": config["intermediate_size"],
    },
    variant=_variant,
    rotary_style="gptj",
    rotates=lambda config, layer, windowed: rotates_most(config, layer),
    qk_norm_rotated=True,
    windowed=lambda config, layer: False,
    chunked=rotates_most,
    temperature=_temperature,
    moe=_moe,
    routing=lambda config: {"scoring": "sigmoid", "weighs_input": True, "shared_size": config["moe_intermediate_size"]},
    expert_tensor="",
    expert_layouts={"w13": "transposed", "w2": "transposed"},
)

FAMILIES = {"llama4": _LLAMA4, "llama4_text": _LLAMA4}
