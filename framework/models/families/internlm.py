"""InternLM 2 and 3."""

from __future__ import annotations

from dataclasses import replace

from .family import Config, Family, where
from .llama import LLAMA


def _internlm3_biases(config: Config) -> frozenset[str]:
    """Released configs call them qkv_bias (of q, k and v) and bias (of all else), the library attention_bias and mlp_bias."""
    own = config.get("qkv_bias", config["attention_bias"])
    rest = config.get("bias", config["mlp_bias"])
    return where(own, "qkv") | where(rest, "o", "gate_up", "down")


_INTERNLM2 = Family(
    {
        "qkv": ("attention.wqkv",),
        "o": ("attention.wo",),
        "attn_norm": ("attention_norm",),
        "mlp_norm": ("ffn_norm",),
        "gate_up": ("feed_forward.w1", "feed_forward.w3"),
        "down": ("feed_forward.w2",),
    },
    embed="tok_embeddings",
    lm_head="output",
    defaults={"bias": True, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    biases=lambda config: where(config["bias"], "qkv", "o"),
    interleaved_qkv=True,
)
_INTERNLM3 = replace(
    LLAMA,
    defaults={**LLAMA.defaults, "head_dim": 128, "max_position_embeddings": 32768, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    biases=_internlm3_biases,
)

FAMILIES = {"internlm2": _INTERNLM2, "internlm3": _INTERNLM3}
