"""Command-R and R7B."""

from __future__ import annotations

from dataclasses import replace

from .family import ATTENTION, QK_NORM, SWIGLU, Config, Family, where

_NAMES = {**ATTENTION, **SWIGLU, "attn_norm": ("input_layernorm",)}


def _positions(config: Config) -> Config:
    """Command-R was trained for more than its ``max_position_embeddings``, and says so elsewhere."""
    return {"max_position_embeddings": config.get("model_max_length") or config["max_position_embeddings"]}


_COHERE = Family(
    _NAMES,
    fields={"norm_eps": "layer_norm_eps"},
    defaults={
        "attention_bias": False,
        "default_theta": 5e5,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "use_qk_norm": False,
        "tie_word_embeddings": True,
    },
    derived=_positions,
    biases=lambda config: where(config["attention_bias"], "qkv", "o"),
    variant=lambda config: {"names": {**_NAMES, **QK_NORM}, "qk_norm": "heads"} if config["use_qk_norm"] else {},
    residual="parallel",
    norm="layer",
    norm_bias=False,
    rotary_style="gptj",
)
_COHERE2 = replace(
    _COHERE,
    defaults={**_COHERE.defaults, "default_theta": 1e4, "sliding_window": 4096, "sliding_window_pattern": 4},
    variant=lambda config: {},
    windowed=lambda config, layer: (layer + 1) % config["sliding_window_pattern"] != 0,
    rotates=lambda config, layer, windowed: windowed,
)

FAMILIES = {"cohere": _COHERE, "cohere2": _COHERE2}
