"""Mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from .family import LLAMA_NAMES, Config
from .llama import LLAMA, QWEN3

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


def _qwen3_moe_layer(config: Config, layer: int) -> bool:
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
_QWEN3_MOE = replace(
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
    moe=_qwen3_moe_layer,
)

FAMILIES = {"mixtral": _MIXTRAL, "qwen3_moe": _QWEN3_MOE}
