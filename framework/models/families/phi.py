"""Phi-1 and 2, Persimmon, StableLM and Starcoder2: rotary embeddings between layer norms."""

from __future__ import annotations

from dataclasses import replace

from .family import ATTENTION, LLAMA_NAMES, PRE_NORMS, Config, Family, where

_QK_LAYERNORM = {"q_norm": ("self_attn.q_layernorm",), "k_norm": ("self_attn.k_layernorm",)}
_QK_LAYERNORMS = {name: (f"{module}.norms.{{h}}",) for name, (module,) in _QK_LAYERNORM.items()}
_PHI_NAMES = {**ATTENTION, "o": ("self_attn.dense",), "attn_norm": ("input_layernorm",), "up": ("mlp.fc1",), "down": ("mlp.fc2",)}
_PERSIMMON_NAMES = {
    **PRE_NORMS,
    "qkv": ("self_attn.query_key_value",),
    "o": ("self_attn.dense",),
    "up": ("mlp.dense_h_to_4h",),
    "down": ("mlp.dense_4h_to_h",),
}

_PHI = Family(
    _PHI_NAMES,
    final_norm="final_layernorm",
    fields={"norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
    },
    biases=lambda config: frozenset({"qkv", "o", "up", "down", "lm_head"}),
    variant=lambda config: {"names": {**_PHI_NAMES, **_QK_LAYERNORM}, "qk_norm": "head"} if config["qk_layernorm"] else {},
    residual="parallel",
    norm="layer",
    gated=False,
    qk_norm_bias=True,
)
_PERSIMMON = replace(
    _PHI,
    names=_PERSIMMON_NAMES,
    defaults={**_PHI.defaults, "hidden_act": "relu2", "max_position_embeddings": 16384, "qk_layernorm": True},
    biases=lambda config: frozenset({"qkv", "o", "up", "down"}),
    variant=lambda config: {"names": {**_PERSIMMON_NAMES, **_QK_LAYERNORM}, "qk_norm": "head"} if config["qk_layernorm"] else {},
    residual="pre",
    interleaved_qkv=True,
)


def _stablelm_variant(config: Config) -> dict[str, object]:
    names = dict(LLAMA_NAMES)
    if config["use_parallel_residual"]:
        del names["mlp_norm"]
    return {
        "names": names | (_QK_LAYERNORMS if config["qk_layernorm"] else {}),
        "qk_norm": "heads" if config["qk_layernorm"] else "",
        "residual": "parallel" if config["use_parallel_residual"] else "pre",
    }


_STABLELM = Family(
    LLAMA_NAMES,
    fields={"norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "use_qkv_bias": False,
    },
    biases=lambda config: where(config["use_qkv_bias"], "qkv"),
    variant=_stablelm_variant,
    norm="layer",
)
_STARCODER2 = Family(
    {**ATTENTION, **PRE_NORMS, "up": ("mlp.c_fc",), "down": ("mlp.c_proj",)},
    fields={"norm_eps": "norm_epsilon"},
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "sliding_window": None,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    biases=lambda config: where(config["use_bias"], "qkv", "o", "up", "down"),
    norm="layer",
    gated=False,
)

FAMILIES = {"phi": _PHI, "persimmon": _PERSIMMON, "stablelm": _STABLELM, "starcoder2": _STARCODER2}
