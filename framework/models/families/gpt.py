"""GPT and its kin: layer norms with biases, plain MLPs."""

from __future__ import annotations

from dataclasses import replace

from .family import Config, Family, where

_BIASES = frozenset({"qkv", "o", "up", "down"})
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
    biases=lambda config: _BIASES,
    norm="layer",
    gated=False,
    positions="learned",
    transposed=True,
    refuse=lambda config: "it is part of an encoder-decoder" if config["add_cross_attention"] else None,
)
_GPT_BIGCODE = replace(
    _GPT2,
    defaults={**_GPT2.defaults, "activation_function": "gelu_pytorch_tanh", "multi_query": True},
    derived=lambda config: {"num_key_value_heads": 1 if config["multi_query"] else config["num_attention_heads"]},
    transposed=False,
    interleaved_qkv=True,
)
_OPENAI_GPT = replace(
    _GPT2,
    embed="tokens_embed",
    position_embed="positions_embed",
    ignored=(*_GPT2.ignored, r"position_ids$"),
    fields={**_GPT2.fields, "hidden_act": "afn"},
    defaults={**_GPT2.defaults, "n_positions": 512, "vocab_size": 40478, "afn": "gelu"},
    derived=lambda config: {"hidden_act": {"gelu": "gelu_new", "swish": "silu"}.get(config["hidden_act"], config["hidden_act"])},
    residual="post",
)


def _gpt_neo_window(config: Config, layer: int) -> bool:
    """attention_types: [(kinds of successive layers, how often these repeat), ...]."""
    return [kind for kinds, times in config["attention_types"] for kind in list(kinds) * times][layer] == "local"


_GPT_NEO = replace(
    _GPT2,
    names={
        **_GPT2.names,
        "qkv": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        "o": ("attn.attention.out_proj",),
    },
    ignored=(r"\.attn\.attention\.(masked_)?bias$",),
    fields={
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
        "sliding_window": "window_size",
    },
    defaults={
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "max_position_embeddings": 2048,
        "attention_types": ((("global", "local"), 12),),
        "window_size": 256,
        "scale_attn_weights": False,
        "tie_word_embeddings": True,
    },
    biases=lambda config: _BIASES - {"qkv"},
    transposed=False,
    windowed=_gpt_neo_window,
    refuse=lambda config: None,
)
_GPT_J = Family(
    {
        "qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        "o": ("attn.out_proj",),
        "attn_norm": ("ln_1",),
        "up": ("mlp.fc_in",),
        "down": ("mlp.fc_out",),
    },
    base="transformer.",
    embed="wte",
    final_norm="ln_f",
    layers="h",
    ignored=(r"\.attn\.(masked_)?bias$",),
    fields=_GPT2.fields,
    defaults={
        "n_positions": 2048,
        "layer_norm_epsilon": 1e-5,
        "n_inner": None,
        "activation_function": "gelu_new",
        "rotary_dim": 64,
        "tie_word_embeddings": False,
    },
    biases=lambda config: frozenset({"up", "down", "lm_head"}),
    residual="parallel",
    norm="layer",
    gated=False,
    rotary_style="gptj",
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
    biases=lambda config: where(config["attention_bias"], "qkv", "o") | {"up", "down"},
    variant=lambda config: {"residual": "parallel" if config["use_parallel_residual"] else "pre"},
    norm="layer",
    gated=False,
    interleaved_qkv=True,
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
    biases=lambda config: where(config["enable_bias"], *_BIASES),
    variant=lambda config: {"residual": "pre" if config["do_layer_norm_before"] else "post"},
    norm="layer",
    gated=False,
    positions="learned",
    position_offset=2,
    refuse=lambda config: None if config["layer_norm_elementwise_affine"] else "its norms have no weights",
)
_BIOGPT = replace(
    _OPT,
    base="biogpt.",
    final_norm="layer_norm",
    lm_head="output_projection",
    renames=(),
    fields={},
    defaults={
        "intermediate_size": 4096,
        "hidden_act": "gelu",
        "max_position_embeddings": 1024,
        "norm_eps": 1e-5,  # whatever its layer_norm_eps is
        "scale_embedding": True,
        "tie_word_embeddings": True,
    },
    derived=lambda config: {"embedding_multiplier": config["hidden_size"] ** 0.5} if config["scale_embedding"] else {},
    biases=lambda config: _BIASES,
    variant=lambda config: {},
    refuse=lambda config: None,
)

FAMILIES = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT_BIGCODE,
    "openai-gpt": _OPENAI_GPT,
    "gpt_neo": _GPT_NEO,
    "gptj": _GPT_J,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "biogpt": _BIOGPT,
}
