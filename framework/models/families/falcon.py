"""Falcon and BLOOM: fused projections, head by head, and positions by ALiBi (arXiv 2108.12409)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .family import Config, Family, where

_BLOOM = Family(
    {
        "qkv": ("self_attention.query_key_value",),
        "o": ("self_attention.dense",),
        "attn_norm": ("input_layernorm",),
        "mlp_norm": ("post_attention_layernorm",),
        "up": ("mlp.dense_h_to_4h",),
        "down": ("mlp.dense_4h_to_h",),
    },
    base="transformer.",
    embed="word_embeddings",
    embed_norm="word_embeddings_layernorm",
    final_norm="ln_f",
    layers="h",
    fields={
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
        "norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu_new",
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": True,
    },
    biases=lambda config: frozenset({"qkv", "o", "up", "down"}),
    norm="layer",
    gated=False,
    positions="alibi",
    interleaved_qkv=True,
    refuse=lambda config: (
        "its residual stream carries normalized states" if config["apply_residual_connection_post_layernorm"] else None
    ),
)


def _kv_heads(config: Config) -> Config:
    """The older architecture has one KV head, or one for each head."""
    heads, listed = config["num_attention_heads"], config.get("num_kv_heads")
    if config["new_decoder_architecture"]:
        return {"num_key_value_heads": listed or heads}
    return {"num_key_value_heads": 1 if config["multi_query"] else listed or heads}


def _num_norms(config: Config) -> int:
    """Of a layer."""
    if not config["parallel_attn"]:
        return 2
    return (config["num_ln_in_parallel_attn"] or 2) if config["new_decoder_architecture"] else 1


def _falcon_variant(config: Config) -> Mapping[str, Any]:
    names = {name: modules for name, modules in _BLOOM.names.items() if not name.endswith("norm")}
    if _num_norms(config) == 1:
        names["attn_norm"] = ("input_layernorm",)
    elif config["parallel_attn"]:
        names |= {"attn_norm": ("ln_attn",), "mlp_norm": ("ln_mlp",)}
    else:
        names = {**_BLOOM.names}
    return {
        "names": names,
        "residual": "parallel" if config["parallel_attn"] else "pre",
        "positions": "alibi" if config["alibi"] else "rotary",
    }


_FALCON = replace(
    _BLOOM,
    embed_norm=None,
    ignored=(r"\.inv_freq$",),
    fields={"norm_eps": "layer_norm_epsilon", "intermediate_size": "ffn_hidden_size", "hidden_act": "activation"},
    defaults={
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "activation": "gelu",
        "alibi": False,
        "bias": False,
        "multi_query": True,
        "new_decoder_architecture": False,
        "num_ln_in_parallel_attn": None,
        "parallel_attn": True,
        "tie_word_embeddings": True,
    },
    derived=_kv_heads,
    biases=lambda config: where(config["bias"], "qkv", "o", "up", "down"),
    variant=_falcon_variant,
    alibi_scaled=True,
    refuse=lambda config: (
        "it is of the new architecture, but not parallel"
        if config["new_decoder_architecture"] and not config["parallel_attn"]
        else None
    ),
)

FAMILIES = {"bloom": _BLOOM, "falcon": _FALCON}
