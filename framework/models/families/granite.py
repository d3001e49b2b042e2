"""Granite, HyperCLOVA X and MiniCPM: embeddings, what a layer adds, scores and logits are scaled."""

from __future__ import annotations

import math
from dataclasses import replace

from .family import LLAMA_NAMES, Config
from .llama import LLAMA

_POST_NORMS = {"attn_post_norm": ("post_norm1",), "mlp_post_norm": ("post_norm2",)}


def _minicpm_scales(config: Config) -> Config:
    hidden = config["hidden_size"]
    return {
        "embedding_multiplier": config["scale_emb"],
        "residual_multiplier": config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        "logit_scale": config["dim_model_base"] / hidden if config["dim_model_base"] else 1.0,
    }


def _minicpm_refusal(config: Config) -> str | None:
    if config.get("num_experts"):
        return "it is a MiniCPM with a mixture of experts"
    return "its attention is sparse (sparse_config)" if config.get("sparse_config") else None


_GRANITE = replace(
    LLAMA,
    defaults={**LLAMA.defaults, "attention_multiplier": 1.0, "logits_scaling": 1.0},
    derived=lambda config: {"logit_scale": 1 / config["logits_scaling"]},
)
_HYPERCLOVAX = replace(
    _GRANITE,
    defaults={**LLAMA.defaults, "logits_scaling": 1.0, "use_post_norm": True},
    derived=lambda config: {"logit_scale": config["logits_scaling"]},  # which Granite divides by
    variant=lambda config: {"names": {**LLAMA_NAMES, **_POST_NORMS}, "residual": "sandwich"} if config["use_post_norm"] else {},
)
MINICPM = replace(
    LLAMA,
    defaults={**LLAMA.defaults, "scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": None, "tie_word_embeddings": True},
    derived=_minicpm_scales,
    refuse=_minicpm_refusal,
)

FAMILIES = {"granite": _GRANITE, "hyperclovax": _HYPERCLOVAX, "minicpm": MINICPM}
