"""OLMo and EXAONE 4."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import LLAMA, SIZES, Example, Without, family

WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
NO_WINDOW = Without({"sliding_window": None})
BEFORE = {"attn_norm": ("post_attention_layernorm",), "mlp_norm": ("post_feedforward_layernorm",)}
PRE = {name: modules for name, modules in FAMILIES["olmo2"].names.items() if "post" not in name} | BEFORE
RESIDUAL = family(residual="pre", names=PRE)
PER_TYPE = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        "full_attention": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 24},
    }
}

EXAMPLES = {
    "olmo": Example(
        "OlmoConfig", {**LLAMA, "clip_qkv": 2.0}, {"clip": Without({"clip_qkv": None}), "layer norm": family(norm="rms")}
    ),
    "olmo2": Example(
        "Olmo2Config",
        LLAMA,
        {"after": RESIDUAL, "q/k norm": family(qk_norm="", ignored=(r"[qk]_norm",), names=FAMILIES["olmo2"].names)},
    ),
    "olmo3": Example(
        "Olmo3Config",
        {**SIZES, **WINDOWS, **PER_TYPE},
        {"after": RESIDUAL, "window": NO_WINDOW, "rope kind": Without({"rope_parameters": {"rope_theta": 500.0}})},
    ),
    "exaone4": Example(
        "Exaone4Config",
        {**LLAMA, **WINDOWS, "head_dim": 16},
        {
            "after": RESIDUAL,
            "q/k norm": family(qk_norm=""),
            "no rotation": family(rotates=lambda config, layer, windowed: True),
            "window": Without({"sliding_window": 96}),
        },
    ),
    "exaone4-full": Example(
        "Exaone4Config", {**LLAMA, "sliding_window": None, "layer_types": ["full_attention"] * 3}, {"q/k norm": family(qk_norm="")}
    ),
}
