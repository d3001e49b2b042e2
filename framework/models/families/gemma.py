"""Gemma 1 to 3 and VaultGemma: embeddings times the root of the width, norms around what is added."""

from __future__ import annotations

import math
from dataclasses import replace

from .family import ATTENTION, LLAMA_NAMES, QK_NORM, SWIGLU, Config, Family, attention_biases

_GEMMA2_NAMES = {
    **ATTENTION,
    **SWIGLU,
    "attn_norm": ("input_layernorm",),
    "attn_post_norm": ("post_attention_layernorm",),
    "mlp_norm": ("pre_feedforward_layernorm",),
    "mlp_post_norm": ("post_feedforward_layernorm",),
}


def _bidirectional(config: Config) -> str | None:
    return "its attention is not causal" if config["use_bidirectional_attention"] else None


def _embed_scale(config: Config) -> Config:
    return {"embedding_multiplier": math.sqrt(config["hidden_size"])}


def _embedding_gemma(config: Config) -> Config:
    """Where tokens see those after them, the window counts both sides."""
    window = config["sliding_window"]
    both_sides = {"sliding_window": window // 2 + 1} if config["use_bidirectional_attention"] and window else {}
    return {**_embed_scale(config), **both_sides}


def _legacy_gelu(config: Config) -> Config:
    """Released configs say "gelu" and mean the approximation by tanh."""
    activation = config["hidden_act"]
    return {**_embed_scale(config), "hidden_act": "gelu_pytorch_tanh" if activation == "gelu" else activation}


_GEMMA = Family(
    LLAMA_NAMES,
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
    },
    derived=_legacy_gelu,
    biases=attention_biases,
    norm_offset=1.0,
    refuse=_bidirectional,
)
_GEMMA2 = replace(
    _GEMMA,
    names=_GEMMA2_NAMES,
    fields={"hidden_act": "hidden_activation"},
    defaults={
        **_GEMMA.defaults,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    derived=_embed_scale,
    residual="sandwich",
    windowed=lambda config, layer: layer % 2 == 0,
)
_VAULTGEMMA = replace(
    _GEMMA2, names={name: modules for name, modules in _GEMMA2_NAMES.items() if "post" not in name}, residual="pre"
)
_GEMMA3 = replace(
    _GEMMA2,
    names={**_GEMMA2_NAMES, **QK_NORM},
    renames=(("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.lm_head", "lm_head")),
    ignored=(r"\.inv_freq$", r"(^|\.)vision_tower\.", r"(^|\.)multi_modal_projector\."),
    defaults={
        **_GEMMA2.defaults,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "default_theta": 1e6,
        "default_local_theta": 1e4,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    derived=_embedding_gemma,
    variant=lambda config: {"causal": not config["use_bidirectional_attention"]},
    qk_norm="head",
    scaled_positions=True,
    windowed=lambda config, layer: (layer + 1) % config["sliding_window_pattern"] != 0,
    refuse=lambda config: None,
)

FAMILIES = {"gemma": _GEMMA, "gemma2": _GEMMA2, "gemma3_text": _GEMMA3, "gemma3": _GEMMA3, "vaultgemma": _VAULTGEMMA}
