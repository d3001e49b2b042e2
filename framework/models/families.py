"""The families of models that the native decoder covers: one table entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Config = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]
"""Part of a layer -> the modules on disk that are stacked to make it, in order."""


@dataclass(frozen=True)
class Family:
    """How the models of one ``model_type`` differ from each other's; everything else is in their config.json.

    Names on disk:
    base         prefix of everything but the logits' projection; a checkpoint of the bare model lacks it
    embed, final_norm, lm_head, layers   the module names; ``layers`` is the list
    names        parts within a layer. Several names are stacked along the output dimension; ``{e}`` counts experts
    renames      (prefix on disk, prefix here), for checkpoints that hold a text model inside a larger one
    ignored      regular expressions of tensors that are no weights (buffers, towers of other modalities)
    Config:
    fields       our name of a field -> the config's name, where they differ
    defaults     of fields that a config.json may leave out
    biases       parts of a layer that have a bias
    Structure:
    residual     pre: x + f(norm(x)); sandwich: x + norm(f(norm(x))); parallel: x + attention(norm(x)) + mlp(norm'(x));
                 post: norm(x + f(x))
    norm         RMS norms, or layer norms with a bias; norm_offset is added to the weight of RMS norms
    gated        the MLP is down(activation(gate(x)) * up(x)), else down(activation(up(x)))
    qk_norm      RMS norm of each query and key head before the rotary embedding
    positions    rotary, or a learned table with ``position_offset`` unused rows in front
    embed_scale  embeddings are multiplied by sqrt(hidden size)
    transposed   weights of linear layers lie as [in, out]
    interleaved_qkv  q, k and v of a head are neighbours in the fused projection
    windowed     does layer i of num_layers see a window only? Consulted if the config has no ``layer_types``
    moe          has layer i a mixture of experts in place of its MLP?
    refuse       reason why this config is beyond the native decoder, or None
    """

    names: Names
    base: str = "model."
    embed: str = "embed_tokens"
    final_norm: str | None = "norm"
    lm_head: str = "lm_head"
    layers: str = "layers"
    position_embed: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r"\.inv_freq$",)
    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Config = field(default_factory=dict)
    biases: Callable[[Config], frozenset[str]] = lambda config: frozenset()
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    residual: Callable[[Config], str] = lambda config: "pre"
    gated: bool = True
    qk_norm: bool = False
    positions: Literal["rotary", "learned"] = "rotary"
    position_offset: int = 0
    embed_scale: bool = False
    transposed: bool = False
    interleaved_qkv: bool = False
    windowed: Callable[[Config, int], bool] = lambda config, layer: True
    moe: Callable[[Config, int], bool] = lambda config, layer: False
    refuse: Callable[[Config], str | None] = lambda config: None


def _where(condition: bool, *parts: str) -> frozenset[str]:
    return frozenset(parts if condition else ())


_SWIGLU = {"gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",)}
_ATTENTION = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "attn_norm": ("input_layernorm",),
}
_QK_NORM = {"q_norm": ("self_attn.q_norm",), "k_norm": ("self_attn.k_norm",)}
_LLAMA_NAMES = {**_ATTENTION, **_SWIGLU, "mlp_norm": ("post_attention_layernorm",)}
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
_GEMMA_NAMES = {
    **_ATTENTION,
    **_SWIGLU,
    "attn_post_norm": ("post_attention_layernorm",),
    "mlp_norm": ("pre_feedforward_layernorm",),
    "mlp_post_norm": ("post_feedforward_layernorm",),
}


def _attention_biases(config: Config) -> frozenset[str]:
    return _where(config["attention_bias"], "qkv", "o") | _where(config.get("mlp_bias", False), "gate_up", "down")


def _qwen_window(config: Config, layer: int) -> bool:
    return bool(config["use_sliding_window"]) and layer >= config["max_window_layers"]


def _qwen3_moe_layer(config: Config, layer: int) -> bool:
    dense = layer in (config["mlp_only_layers"] or ()) or (layer + 1) % config["decoder_sparse_step"] != 0
    return not dense and config["num_experts"] > 0


def _bidirectional(config: Config) -> str | None:
    return "its attention is not causal" if config["use_bidirectional_attention"] else None


_LLAMA = Family(
    _LLAMA_NAMES,
    defaults={
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "sliding_window": None,
    },
    biases=_attention_biases,
)
_MISTRAL = replace(
    _LLAMA, defaults={**_LLAMA.defaults, "sliding_window": 4096, "max_position_embeddings": 131072, "num_key_value_heads": 8}
)
_QWEN2 = replace(
    _LLAMA,
    defaults={
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    biases=lambda config: frozenset({"qkv"}),
    windowed=_qwen_window,
)
_QWEN3 = replace(
    _QWEN2,
    names={**_LLAMA_NAMES, **_QK_NORM},
    defaults={**_QWEN2.defaults, "attention_bias": False, "head_dim": 128},
    biases=_attention_biases,
    qk_norm=True,
)
_GEMMA2 = Family(
    _GEMMA_NAMES,
    fields={"hidden_act": "hidden_activation"},
    defaults={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
    },
    biases=_attention_biases,
    norm_offset=1.0,
    residual=lambda config: "sandwich",
    embed_scale=True,
    windowed=lambda config, layer: layer % 2 == 0,
    refuse=_bidirectional,
)
_GEMMA3 = replace(
    _GEMMA2,
    names={**_GEMMA_NAMES, **_QK_NORM},
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
    qk_norm=True,
    windowed=lambda config, layer: (layer + 1) % config["sliding_window_pattern"] != 0,
)
_PHI3 = replace(
    _LLAMA,
    names={**_LLAMA_NAMES, "qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)},
    defaults={**_LLAMA.defaults, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
)
_MIXTRAL = replace(
    _LLAMA,
    names={**_LLAMA_NAMES, **_MIXTRAL_EXPERTS},
    fields={"num_experts": "num_local_experts"},
    defaults={
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
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
    _QWEN3,
    names={**_QWEN3.names, **_EXPERTS},
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
        "moe_intermediate_size": 768,
    },
    windowed=lambda config, layer: bool(config["use_sliding_window"]),
    moe=_qwen3_moe_layer,
)
_GPT_NEOX = Family(
    {
        "qkv": ("attention.query_key_value",),
        "o": ("attention.dense",),
        "attn_norm": ("input_layernorm",),
        "mlp_norm": ("post_attention_layernorm",),
        "up": ("mlp.dense_h_to_4h",),
        "down": ("mlp.dense_4h_to_h",),
    },
    base="gpt_neox.",
    embed="embed_in",
    final_norm="final_layer_norm",
    lm_head="embed_out",
    ignored=(r"\.inv_freq$", r"\.attention\.bias$", r"\.masked_bias$"),
    fields={"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base", "norm_eps": "layer_norm_eps"},
    defaults={
        "rotary_pct": 0.25,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "attention_bias": True,
        "use_parallel_residual": True,
    },
    biases=lambda config: _where(config["attention_bias"], "qkv", "o") | {"up", "down"},
    norm="layer",
    residual=lambda config: "parallel" if config["use_parallel_residual"] else "pre",
    gated=False,
    interleaved_qkv=True,
)
_GPT2 = Family(
    {
        "qkv": ("attn.c_attn",),
        "o": ("attn.c_proj",),
        "attn_norm": ("ln_1",),
        "mlp_norm": ("ln_2",),
        "up": ("mlp.c_fc",),
        "down": ("mlp.c_proj",),
    },
    base="transformer.",
    embed="wte",
    final_norm="ln_f",
    layers="h",
    position_embed="wpe",
    ignored=(r"\.attn\.(masked_)?bias$",),
    fields={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
    },
    defaults={
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "n_inner": None,
        "vocab_size": 50257,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    biases=lambda config: frozenset({"qkv", "o", "up", "down"}),
    norm="layer",
    gated=False,
    positions="learned",
    transposed=True,
    refuse=lambda config: "it is part of an encoder-decoder" if config["add_cross_attention"] else None,
)
_OPT = Family(
    {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.out_proj",),
        "attn_norm": ("self_attn_layer_norm",),
        "mlp_norm": ("final_layer_norm",),
        "up": ("fc1",),
        "down": ("fc2",),
    },
    base="model.decoder.",
    final_norm="final_layer_norm",
    renames=(("decoder.", "model.decoder."),),
    position_embed="embed_positions",
    fields={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    defaults={
        "ffn_dim": 3072,
        "activation_function": "relu",
        "max_position_embeddings": 2048,
        "enable_bias": True,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "norm_eps": 1e-5,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
    biases=lambda config: _where(config["enable_bias"], "qkv", "o", "up", "down"),
    norm="layer",
    residual=lambda config: "pre" if config["do_layer_norm_before"] else "post",
    gated=False,
    positions="learned",
    position_offset=2,
    refuse=lambda config: None if config["layer_norm_elementwise_affine"] else "its norms have no weights",
)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "phi3": _PHI3,
    "mixtral": _MIXTRAL,
    "qwen3_moe": _QWEN3_MOE,
    "gpt_neox": _GPT_NEOX,
    "gpt2": _GPT2,
    "opt": _OPT,
}
