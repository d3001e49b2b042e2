"""OLMo 1 to 3, and EXAONE 4: norms without weights; norms after attention and MLP."""

from __future__ import annotations

from dataclasses import replace

from .family import ATTENTION, QK_NORM, SWIGLU, Config, attention_biases
from .llama import LLAMA

_AFTER_NAMES = {
    **ATTENTION,
    **SWIGLU,
    **QK_NORM,
    "attn_post_norm": ("post_attention_layernorm",),
    "mlp_post_norm": ("post_feedforward_layernorm",),
}


def _exaone_window(config: Config, layer: int) -> bool:
    """sliding_window_pattern: every n-th layer sees all, or letters, of which L stands for a window. No window: no pattern."""
    pattern = config["sliding_window_pattern"]
    if config["sliding_window"] is None or not pattern:
        return False
    return pattern[layer % len(pattern)] == "L" if isinstance(pattern, str) else (layer + 1) % pattern != 0


_OLMO = replace(
    LLAMA,
    names={**ATTENTION, **SWIGLU, "attn_norm": (), "mlp_norm": ()},
    final_norm="",
    defaults={**LLAMA.defaults, "norm_eps": 1e-5},
    norm="layer",
    norm_bias=False,
)
OLMO2 = replace(LLAMA, names=_AFTER_NAMES, defaults={**LLAMA.defaults, "rms_norm_eps": 1e-5}, residual="after", qk_norm="width")
_OLMO3 = replace(
    OLMO2,
    defaults={**OLMO2.defaults, "default_theta": 5e5, "default_local_theta": 5e5, "sliding_window": 4096},
    windowed=lambda config, layer: (layer + 1) % 4 != 0,
)
_EXAONE4 = replace(
    OLMO2,
    defaults={**OLMO2.defaults, "num_key_value_heads": 32, "sliding_window": 4096, "sliding_window_pattern": 4},
    biases=attention_biases,
    qk_norm="head",
    windowed=_exaone_window,
    rotates=lambda config, layer, windowed: windowed or config["sliding_window"] is None,
)

FAMILIES = {"olmo": _OLMO, "olmo2": OLMO2, "olmo3": _OLMO3, "exaone4": _EXAONE4}
