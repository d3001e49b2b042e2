"""GLM-4."""

from __future__ import annotations

from dataclasses import replace

from .family import LLAMA_NAMES, where
from .llama import LLAMA

_GLM = replace(
    LLAMA,
    names={**LLAMA_NAMES, "gate_up": ("mlp.gate_up_proj",)},
    defaults={
        **LLAMA.defaults,
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-7,
    },
    biases=lambda config: where(config["attention_bias"], "qkv"),
    rotary_style="gptj",
)
_GLM4 = replace(
    _GLM,
    names={**_GLM.names, "attn_post_norm": ("post_self_attn_layernorm",), "mlp_post_norm": ("post_mlp_layernorm",)},
    residual="sandwich",
)

FAMILIES = {"glm": _GLM, "glm4": _GLM4}
