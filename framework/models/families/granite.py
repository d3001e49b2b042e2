"""Granite with its mixtures of experts, HyperCLOVA X and MiniCPM: embeddings, what a layer adds, scores and logits are scaled."""

from __future__ import annotations

import math
from dataclasses import replace

from .family import ATTENTION, LLAMA_NAMES, PRE_NORMS, Config
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
_GRANITE_MOE = replace(
    _GRANITE,
    names={
        **ATTENTION,
        **PRE_NORMS,
        "router": ("block_sparse_moe.router.layer",),
        "w13": ("block_sparse_moe.input_linear",),
        "w2": ("block_sparse_moe.output_linear",),
    },
    fields={"num_experts": "num_local_experts"},
    defaults={**_GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
    moe=lambda config, layer: True,
)
GRANITE_MOE_SHARED = replace(
    _GRANITE_MOE,
    names={**_GRANITE_MOE.names, "shared_gate_up": ("shared_mlp.input_linear",), "shared_down": ("shared_mlp.output_linear",)},
    defaults={**_GRANITE_MOE.defaults, "shared_intermediate_size": 0},
    routing=lambda config: {"shared_size": config["shared_intermediate_size"]},
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

FAMILIES = {
    "granite": _GRANITE,
    "granitemoe": _GRANITE_MOE,
    "granitemoeshared": GRANITE_MOE_SHARED,
    "hyperclovax": _HYPERCLOVAX,
    "minicpm": MINICPM,
}
