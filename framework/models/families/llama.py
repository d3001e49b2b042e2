"""Llama and what differs from it by a bias, a window or a norm."""

from __future__ import annotations

from dataclasses import replace

from ..cogvlm import is_second
from .family import ATTENTION, LLAMA_NAMES, PLAIN_MLP, PRE_NORMS, QK_NORM, Config, Family, attention_biases, where


def _qwen_window(config: Config, layer: int) -> bool:
    return bool(config["use_sliding_window"]) and layer >= config["max_window_layers"]


def rotates_most(config: Config, layer: int) -> bool:
    """no_rope_layers: 0 for layers that do not. Else every n-th does not."""
    listed = config.get("no_rope_layers")
    return bool(listed[layer]) if listed else (layer + 1) % config["no_rope_layer_interval"] != 0


LLAMA = Family(
    LLAMA_NAMES,
    defaults={
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "sliding_window": None,
    },
    biases=attention_biases,
)


def _is_grit(config: Config) -> bool:
    """Embeddings of GritLM (arXiv 2402.09906) are made as an encoder does; generating, it is a Mistral."""
    return "GritLM" in (config.get("architectures") or ())


_MISTRAL = replace(
    LLAMA,
    defaults={**LLAMA.defaults, "sliding_window": 4096, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    derived=lambda config: {"sliding_window": None} if _is_grit(config) else {},
    variant=lambda config: {"causal": not _is_grit(config)},
)
_QWEN2 = replace(
    LLAMA,
    defaults={
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    biases=lambda config: frozenset({"qkv"}),
    windowed=_qwen_window,
)
_QWEN2_VL = replace(
    _QWEN2,
    defaults={**_QWEN2.defaults, "default_theta": 1e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "max_window_layers": 80},
)
QWEN3 = replace(
    _QWEN2,
    names={**LLAMA_NAMES, **QK_NORM},
    defaults={**_QWEN2.defaults, "attention_bias": False, "head_dim": 128},
    biases=attention_biases,
    qk_norm="head",
)
_PHI3 = replace(
    LLAMA,
    names={**LLAMA_NAMES, "qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)},
    defaults={**LLAMA.defaults, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
)
_COGVLM = replace(
    LLAMA,
    names={
        **PRE_NORMS,
        "qkv": ("self_attn.language_expert_query_key_value",),
        "o": ("self_attn.language_expert_dense",),
        "gate_up": ("mlp.language_mlp.gate_proj", "mlp.language_mlp.up_proj"),
        "down": ("mlp.language_mlp.down_proj",),
        "vision_qkv": ("self_attn.vision_expert_query_key_value",),
        "vision_o": ("self_attn.vision_expert_dense",),
        "vision_gate_up": ("mlp.vision_mlp.gate_proj", "mlp.vision_mlp.up_proj"),
        "vision_down": ("mlp.vision_mlp.down_proj",),
    },
    fields={"num_key_value_heads": "num_multi_query_heads"},
    derived=lambda config: {"default_theta": 5e5} if is_second(config) else {},
    biases=lambda config: where(is_second(config), "vision_qkv"),
)
_SMOLLM3 = replace(
    LLAMA,
    defaults={
        **LLAMA.defaults,
        "default_theta": 2e6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    windowed=lambda config, layer: bool(config["use_sliding_window"]) and not rotates_most(config, layer),
    rotates=lambda config, layer, windowed: rotates_most(config, layer),
)
_SEED_OSS = replace(
    LLAMA,
    defaults={
        **LLAMA.defaults,
        "attention_bias": True,
        "attention_out_bias": False,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
    },
    biases=lambda config: (
        where(config["attention_bias"], "qkv")
        | where(config["attention_out_bias"], "o")
        | where(config["mlp_bias"], "gate_up", "down")
    ),
)
ERNIE = replace(
    LLAMA,
    defaults={
        **LLAMA.defaults,
        "default_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "use_bias": False,
        "tie_word_embeddings": True,
    },
    biases=lambda config: where(config["use_bias"], "qkv", "o", "gate_up", "down"),
    rotary_style="gptj",
)
_HELIUM = replace(
    LLAMA,
    defaults={
        **LLAMA.defaults,
        "default_theta": 1e5,
        "rms_norm_eps": 1e-8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 20,
    },
    biases=lambda config: where(config["attention_bias"], "qkv") | where(config["mlp_bias"], "gate_up", "down"),
    rotary_style="gptj",
)
HUNYUAN = replace(
    LLAMA,
    names={**LLAMA_NAMES, "q_norm": ("self_attn.query_layernorm",), "k_norm": ("self_attn.key_layernorm",)},
    defaults={**LLAMA.defaults, "rms_norm_eps": 1e-5},
    qk_norm="head",
    qk_norm_rotated=True,
)
_CWM = replace(
    LLAMA,
    defaults={
        **LLAMA.defaults,
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 8192,
        "rope_parameters": {
            "rope_theta": 1e6,
            "factor": 16.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    windowed=lambda config, layer: layer % 4 != 0,
)
_IQUEST = replace(
    LLAMA,
    defaults={**LLAMA.defaults, "rms_norm_eps": 1e-5, "head_dim": 128, "max_position_embeddings": 131072, "num_key_value_heads": 8},
)
_ARCEE = replace(
    LLAMA,
    names={**ATTENTION, **PLAIN_MLP, **PRE_NORMS},
    defaults={**LLAMA.defaults, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    gated=False,
)
_NEMOTRON = replace(
    _ARCEE, defaults={**_ARCEE.defaults, "norm_eps": 1e-5, "partial_rotary_factor": 0.5}, norm="layer", norm_offset=1.0
)
_JAIS2 = replace(
    _ARCEE,
    fields={"norm_eps": "layer_norm_eps"},
    defaults={**_ARCEE.defaults, "attention_bias": True, "mlp_bias": True, "layer_norm_eps": 1e-5, "max_position_embeddings": 8192},
    norm="layer",
)

_MLLAMA = replace(
    LLAMA,
    names={
        **LLAMA_NAMES,
        "cross_q": ("cross_attn.q_proj",),
        "cross_kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
        "cross_o": ("cross_attn.o_proj",),
        "cross_q_norm": ("cross_attn.q_norm",),
        "cross_k_norm": ("cross_attn.k_norm",),
        "cross_gate": ("cross_attn_attn_gate",),
        "cross_mlp_gate": ("cross_attn_mlp_gate",),
    },
    defaults={
        **LLAMA.defaults,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "default_theta": 500000.0,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "tie_word_embeddings": False,
    },
    crosses=lambda config, layer: layer in config["cross_attention_layers"],
    num_unscored=8,
    refuse=lambda config: "its embedding has rows without a logit (tie_word_embeddings)" if config["tie_word_embeddings"] else None,
)

FAMILIES = {
    "llama": LLAMA,
    "mllama_text_model": _MLLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3": QWEN3,
    "phi3": _PHI3,
    "cogvlm": _COGVLM,
    "smollm3": _SMOLLM3,
    "seed_oss": _SEED_OSS,
    "ernie4_5": ERNIE,
    "helium": _HELIUM,
    "hunyuan_v1_dense": HUNYUAN,
    "cwm": _CWM,
    "iquestcoder": _IQUEST,
    "arcee": _ARCEE,
    "nemotron": _NEMOTRON,
    "jais2": _JAIS2,
}
