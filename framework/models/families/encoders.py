"""BERT and its kin: tokens see those after them, and nothing is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .family import Config, Family, attention_biases

_BERT = Family(
    {
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "o": ("attention.output.dense",),
        "attn_norm": ("attention.output.LayerNorm",),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
        "mlp_norm": ("output.LayerNorm",),
    },
    base="bert.",
    embed="embeddings.word_embeddings",
    embed_norm="embeddings.LayerNorm",
    token_types="embeddings.token_type_embeddings",
    position_embed="embeddings.position_embeddings",
    layers="encoder.layer",
    ignored=(r"\.position_ids$", r"\.token_type_ids$", r"^cls\.", r"(^|\.)pooler\."),
    fields={"norm_eps": "layer_norm_eps"},
    defaults={
        "vocab_size": 30522,
        "hidden_act": "gelu",
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "is_decoder": False,
        "position_embedding_type": "absolute",
    },
    biases=lambda config: frozenset({"qkv", "o", "up", "down"}),
    residual="post",
    norm="layer",
    gated=False,
    positions="learned",
    causal=False,
    refuse=lambda config: _decoder(config) or _relative(config),
)


def _decoder(config: Config) -> str | None:
    return "it is made to be a decoder (is_decoder)" if config["is_decoder"] else None


def _relative(config: Config) -> str | None:
    kind = config["position_embedding_type"]
    return None if kind in (None, "absolute") else f"position_embedding_type {kind!r} is not absolute"


def _behind_padding(config: Config) -> Config:
    """The first position is the one behind the padding token's number; so many fewer there are."""
    return {"max_position_embeddings": config["max_position_embeddings"] - _first_position(config)}


def _first_position(config: Config) -> int:
    return int(config["pad_token_id"]) + 1


_ROBERTA = replace(
    _BERT,
    base="roberta.",
    ignored=(*_BERT.ignored, r"^lm_head\."),
    defaults={**_BERT.defaults, "vocab_size": 50265, "pad_token_id": 1},
    derived=_behind_padding,
    variant=lambda config: {"position_offset": _first_position(config)},
)
_DISTILBERT = replace(
    _BERT,
    names={
        "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "o": ("attention.out_lin",),
        "attn_norm": ("sa_layer_norm",),
        "up": ("ffn.lin1",),
        "down": ("ffn.lin2",),
        "mlp_norm": ("output_layer_norm",),
    },
    base="distilbert.",
    token_types="",
    layers="transformer.layer",
    ignored=(*_BERT.ignored, r"^vocab_(transform|layer_norm|projector)\."),
    fields={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    defaults={
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
        "max_position_embeddings": 512,
        "norm_eps": 1e-12,
    },
    refuse=lambda config: None,
)


def _modernbert(config: Config) -> Mapping[str, Any]:
    """``local_attention`` counts both sides. The older names of the two thetas go before the defaults."""
    return {
        "sliding_window": config["local_attention"] // 2 + 1,
        "default_theta": config.get("global_rope_theta", 160000.0),
        "default_local_theta": config.get("local_rope_theta", 10000.0),
    }


_MODERNBERT = Family(
    {
        "attn_norm": ("attn_norm",),
        "qkv": ("attn.Wqkv",),
        "o": ("attn.Wo",),
        "mlp_norm": ("mlp_norm",),
        "gate_up": ("mlp.Wi",),
        "down": ("mlp.Wo",),
    },
    embed="embeddings.tok_embeddings",
    embed_norm="embeddings.norm",
    final_norm="final_norm",
    ignored=(r"\.inv_freq$", r"^head\.", r"^decoder\."),
    fields={"hidden_act": "hidden_activation"},
    defaults={
        "vocab_size": 50368,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
    },
    derived=_modernbert,
    biases=attention_biases,
    variant=lambda config: {"norm_bias": config["norm_bias"]},
    norm="layer",
    starts_normed=True,
    windowed=lambda config, layer: layer % config["global_attn_every_n_layers"] != 0,
    causal=False,
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
}
