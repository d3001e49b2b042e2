"""Llama's kin, GLM-4 and InternLM."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import (
    GEMMA,
    GEMMA_FEATURES,
    LLAMA,
    PLAIN_ROPE,
    SIZES,
    Example,
    Without,
    family,
    rope,
    without_biases,
)
from ..tiny import make_internlm2

NEOX_STYLE = family(rotary_style="neox")
HALF = rope("default", partial_rotary_factor=0.5)
WHOLE = Without(rope("default", partial_rotary_factor=1.0))
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
NO_WINDOW = Without({"sliding_window": None})
INTERNLM2 = {
    **{key: value for key, value in SIZES.items() if not key.endswith("token_id")},
    "model_type": "internlm2",
    "bias": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}

EXAMPLES = {
    "ministral": Example("MinistralConfig", {**LLAMA, **WINDOWS, "head_dim": 32}, {"window": NO_WINDOW}),
    "cwm": Example(
        "CwmConfig", {**LLAMA, **WINDOWS, "head_dim": 16, "bos_token_id": 1, "eos_token_id": [2]}, {"window": NO_WINDOW}
    ),
    "iquestcoder": Example(
        "IQuestCoderConfig", {**LLAMA, "head_dim": 32}, {"theta": Without({"rope_parameters": {"rope_theta": 100.0}})}
    ),
    "smollm3": Example(
        "SmolLM3Config",
        {**LLAMA, "no_rope_layer_interval": 2},
        {
            "no rotation": family(rotates=lambda config, layer, windowed: True),
            "which layers": Without({"no_rope_layers": [0, 1, 1]}),
        },
    ),
    "smollm3-windows": Example(
        "SmolLM3Config",
        {**LLAMA, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 8},
        {"window": Without({"layer_types": None, "use_sliding_window": False})},
    ),
    "seed_oss": Example("SeedOssConfig", {**LLAMA, "head_dim": 32}, {"biases": without_biases()}),
    "ernie4_5": Example(
        "Ernie4_5Config", {**LLAMA, "head_dim": 16, "use_bias": True}, {"biases": without_biases(), "style": NEOX_STYLE}
    ),
    "helium": Example("HeliumConfig", {**LLAMA, "head_dim": 16}, {"style": NEOX_STYLE}),
    "hunyuan": Example(
        "HunYuanDenseV1Config",
        {**LLAMA, "head_dim": 16},
        {"q/k norm": family(qk_norm=""), "after the rotation": family(qk_norm_rotated=False)},
    ),
    "hunyuan-alpha": Example(
        "HunYuanDenseV1Config",
        {**SIZES, "head_dim": 16, **rope("dynamic", factor=1.0, alpha=50.0)},
        {"alpha": PLAIN_ROPE},
        max_model_len=80,
    ),
    "arcee": Example(
        "ArceeConfig", {**LLAMA, "mlp_bias": True}, {"biases": without_biases(), "relu2": Without({"hidden_act": "relu"})}
    ),
    "nemotron": Example(
        "NemotronConfig",
        {**SIZES, **HALF},
        {"norm offset": family(norm_offset=0.0), "relu2": Without({"hidden_act": "relu"}), "partial": WHOLE},
    ),
    "jais2": Example("Jais2Config", {**LLAMA}, {"biases": without_biases()}),
    "glm": Example(
        "GlmConfig", {**SIZES, "head_dim": 16, **HALF}, {"biases": without_biases(), "style": NEOX_STYLE, "partial": WHOLE}
    ),
    "glm4": Example(
        "Glm4Config",
        {**SIZES, "head_dim": 16, **HALF, "attention_bias": True},
        {
            "biases": without_biases(),
            "style": NEOX_STYLE,
            "partial": WHOLE,
            "post norms": family(
                names={name: modules for name, modules in FAMILIES["glm4"].names.items() if "post" not in name},
                ignored=(r"post_(self_attn|mlp)_layernorm",),
            ),
        },
    ),
    "internlm2": Example(
        "", INTERNLM2, {"biases": without_biases(), "by KV heads": family(interleaved_qkv=False)}, oracle=make_internlm2
    ),
    "internlm3": Example(
        "InternLM3Config", {**LLAMA, "head_dim": 32, "attention_bias": True, "mlp_bias": True}, {"biases": without_biases()}
    ),
    "gemma": Example(
        "GemmaConfig",
        {**LLAMA, "head_dim": 32},
        {"embed scale": GEMMA_FEATURES["embed scale"], "norm offset": GEMMA_FEATURES["norm offset"]},
        embed_std=0.05,
    ),
    "vaultgemma": Example(
        "VaultGemmaConfig",
        {**GEMMA, **rope("default")},
        {name: GEMMA_FEATURES[name] for name in ("window", "score cap", "logit cap", "score scale", "embed scale", "norm offset")},
        embed_std=0.05,
    ),
}
