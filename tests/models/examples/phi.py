"""Phi, Persimmon, StableLM and Starcoder2."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import LLAMA, NEOX, SIZES, Example, Without, family, rope, without_biases

HALF = rope("default", partial_rotary_factor=0.5)
WHOLE = Without(rope("default", partial_rotary_factor=1.0))
QUARTER = rope("default", partial_rotary_factor=0.25)

EXAMPLES = {
    "phi": Example(
        "PhiConfig",
        {**SIZES, **HALF, "qk_layernorm": True},
        {
            "q/k norm": family(qk_norm=""),
            "bias of q/k norm": family(qk_norm_bias=False, ignored=(r"[qk]_layernorm\.bias",)),
            "partial": WHOLE,
            "shared norm": family(
                residual="pre",
                names={**FAMILIES["phi"].names, "mlp_norm": ("input_layernorm",)},
                qk_norm="",
                ignored=(r"_layernorm",),
            ),
            "biased logits": family(biases=lambda config: frozenset({"qkv", "o", "up", "down"}), ignored=(r"lm_head\.bias",)),
        },
        embed_std=2.0,
        seed=1,
    ),
    "phi-2": Example(
        "PhiConfig",
        {**SIZES, **HALF},
        {
            "shared norm": family(residual="pre", names={**FAMILIES["phi"].names, "mlp_norm": ("input_layernorm",)}),
            "biases": without_biases(),
        },
    ),
    "persimmon": Example(
        "PersimmonConfig", {**NEOX, **HALF}, {"q/k norm": family(qk_norm=""), "by heads": family(interleaved_qkv=False)}
    ),
    "stablelm": Example(
        "StableLmConfig",
        {**SIZES, **QUARTER, "use_qkv_bias": True},
        {
            "biases": family(biases=lambda config: frozenset(), ignored=(r"_proj\.bias$",)),
            "partial": WHOLE,
            "norm": family(norm="rms", ignored=(r"norm\.bias$",)),
        },
    ),
    "stablelm-12b": Example(
        "StableLmConfig",
        {**SIZES, **QUARTER, "use_parallel_residual": True, "qk_layernorm": True},
        {
            "q/k norm": family(
                qk_norm="",
                ignored=(r"[qk]_layernorm",),
                names={name: modules for name, modules in FAMILIES["stablelm"].names.items() if name != "mlp_norm"},
            ),
            "shared norm": family(
                residual="pre",
                names={**FAMILIES["stablelm"].names, "mlp_norm": ("input_layernorm",)},
                qk_norm="",
                ignored=(r"[qk]_layernorm",),
            ),
        },
    ),
    "starcoder2": Example(
        "Starcoder2Config",
        {**LLAMA, "sliding_window": 8},
        {"window": Without({"sliding_window": None}), "biases": without_biases(), "gelu": Without({"hidden_act": "relu"})},
    ),
}
