"""Command-R and R7B."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import LLAMA, Example, Without, family, without_biases

SEQUENTIAL = family(residual="pre", names={**FAMILIES["cohere"].names, "mlp_norm": ("input_layernorm",)})
FEATURES = {
    "shared norm": SEQUENTIAL,
    "style": family(rotary_style="neox"),
    "logit scale": Without({"logit_scale": 1.0}),
    "layer norm": family(norm="rms"),
}

EXAMPLES = {
    "cohere": Example(
        "CohereConfig", {**LLAMA, "logit_scale": 0.5, "attention_bias": True}, FEATURES | {"biases": without_biases()}
    ),
    "cohere-norms": Example(
        "CohereConfig",
        {**LLAMA, "use_qk_norm": True},
        {"q/k norm": family(qk_norm="", names=FAMILIES["cohere"].names, ignored=(r"[qk]_norm",))},
    ),
    "cohere2": Example(
        "Cohere2Config",
        {**LLAMA, "sliding_window": 8, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        FEATURES
        | {
            "window": Without({"sliding_window": None}),
            "no rotation": family(rotates=lambda config, layer, windowed: True),
            "pattern": Without({"layer_types": None, "sliding_window_pattern": 2}),
        },
    ),
}
