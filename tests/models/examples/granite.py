"""Granite's kin: everything scaled."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import LLAMA, SIZES, Example, Without, family
from ..tiny import make_minicpm

SCALES = {"embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1, "logits_scaling": 4.0}
UNSCALED = {name: Without({name: 1.0}) for name in SCALES}
MINICPM = {
    **{key: value for key, value in SIZES.items() if not key.endswith("token_id")},
    "model_type": "minicpm",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
}

EXAMPLES = {
    "granite": Example("GraniteConfig", {**LLAMA, **SCALES}, UNSCALED),
    "hyperclovax": Example(
        "HyperCLOVAXConfig",
        {**LLAMA, **SCALES},
        UNSCALED | {"post norms": family(names=FAMILIES["hyperclovax"].names, residual="pre", ignored=(r"post_norm[12]",))},
    ),
    "hyperclovax-pre": Example("HyperCLOVAXConfig", {**LLAMA, **SCALES, "use_post_norm": False}, {}),
    "minicpm": Example(
        "",
        MINICPM,
        {name: Without({name: value}) for name, value in {"scale_emb": 1, "scale_depth": 3**0.5, "dim_model_base": 64}.items()},
        oracle=make_minicpm,
    ),
}
