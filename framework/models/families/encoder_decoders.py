"""Decoders that attend to what an encoder gave: T5, BART, Whisper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .family import Config, Family

_T5 = Family(
    {
        "qkv": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
        "o": ("layer.0.SelfAttention.o",),
        "attn_norm": ("layer.0.layer_norm",),
        "cross_q": ("layer.1.EncDecAttention.q",),
        "cross_kv": ("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
        "cross_o": ("layer.1.EncDecAttention.o",),
        "cross_norm": ("layer.1.layer_norm",),
        "mlp_norm": ("layer.2.layer_norm",),
        "up": ("layer.2.DenseReluDense.wi",),
        "gate_up": ("layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"),
        "down": ("layer.2.DenseReluDense.wo",),
    },
    base="",
    embed="shared",
    final_norm="decoder.final_layer_norm",
    layers="decoder.block",
    position_embed="decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    encoder="encoder.",
    ignored=(r"^encoder\.", r"^decoder\.embed_tokens\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$"),
    fields={
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
        "norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions",
    },
    defaults={
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "n_positions": 512,
        "scale_attn_weights": False,
        "decoder_start_token_id": 0,
    },
    derived=lambda config: _of_t5(config),
    variant=lambda config: _mlp_of_t5(config),
    gated=False,
    positions="relative",
)


def _of_t5(config: Config) -> Config:
    """The first T5 scales logits and shares their projection with the embedding; from 1.1 on it does neither. The library, which
    has its own way to say that the projection is shared, keeps whether it scales apart."""
    tied = bool(config.get("scale_decoder_outputs", True)) and config["tie_word_embeddings"]
    activation = config["feed_forward_proj"].removeprefix("gated-")
    return {
        "num_hidden_layers": config["num_decoder_layers"] or config["num_layers"],
        "hidden_act": "gelu_new" if config["feed_forward_proj"] == "gated-gelu" else activation,
        "tie_word_embeddings": tied,
        "logit_scale": config["d_model"] ** -0.5 if tied else None,
    }


def _mlp_of_t5(config: Config) -> Mapping[str, Any]:
    gated = config["feed_forward_proj"].startswith("gated-")
    return {"gated": gated, "names": {name: found for name, found in _T5.names.items() if name != ("up" if gated else "gate_up")}}


_BART = Family(
    {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.out_proj",),
        "attn_norm": ("self_attn_layer_norm",),
        "cross_q": ("encoder_attn.q_proj",),
        "cross_kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "cross_o": ("encoder_attn.out_proj",),
        "cross_norm": ("encoder_attn_layer_norm",),
        "up": ("fc1",),
        "down": ("fc2",),
        "mlp_norm": ("final_layer_norm",),
    },
    embed="shared",
    embed_norm="decoder.layernorm_embedding",
    layers="decoder.layers",
    position_embed="decoder.embed_positions",
    encoder="model.encoder.",
    logits_bias="final_logits_bias",
    ignored=(r"^model\.encoder\.", r"^model\.decoder\.embed_tokens\.weight$"),
    fields={
        "hidden_size": "d_model",
        "intermediate_size": "decoder_ffn_dim",
        "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
        "hidden_act": "activation_function",
    },
    defaults={
        "vocab_size": 50265,
        "d_model": 1024,
        "decoder_layers": 12,
        "decoder_ffn_dim": 4096,
        "decoder_attention_heads": 16,
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "scale_embedding": False,
        "decoder_start_token_id": 2,
    },
    derived=lambda config: {"embedding_multiplier": config["d_model"] ** 0.5 if config["scale_embedding"] else None},
    biases=lambda config: frozenset({"qkv", "o", "cross_q", "cross_kv", "cross_o", "up", "down"}),
    residual="post",
    norm="layer",
    gated=False,
    positions="learned",
    position_offset=2,
)
_WHISPER = replace(
    _BART,
    embed="decoder.embed_tokens",
    embed_norm=None,
    final_norm="decoder.layer_norm",
    lm_head="proj_out",
    logits_bias="",
    ignored=(r"^model\.encoder\.",),
    fields={**_BART.fields, "max_position_embeddings": "max_target_positions"},
    defaults={
        **{name: value for name, value in _BART.defaults.items() if name != "max_position_embeddings"},
        "vocab_size": 51865,
        "d_model": 384,
        "decoder_layers": 4,
        "decoder_ffn_dim": 1536,
        "decoder_attention_heads": 6,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "num_mel_bins": 80,
        "decoder_start_token_id": 50257,
    },
    residual="pre",
    position_offset=0,
    listens=True,
    unbiased=("self_attn.k_proj", "encoder_attn.k_proj"),
)

FAMILIES: Mapping[str, Family] = {"t5": _T5, "bart": _BART, "whisper": _WHISPER}
