"""The families of models that the native decoder covers: one table entry each, in a file for each kin."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    cohere,
    deepseek,
    diffusion,
    encoder_decoders,
    encoders,
    falcon,
    gemma,
    glm,
    gpt,
    granite,
    internlm,
    llama,
    llama4,
    moe,
    olmo,
    phi,
    states,
)
from .family import Config, Family

__all__ = ["FAMILIES", "Config", "Family"]

FAMILIES: Mapping[str, Family] = {
    model_type: family
    for kin in (
        llama,
        gemma,
        gpt,
        falcon,
        glm,
        cohere,
        granite,
        internlm,
        olmo,
        phi,
        moe,
        deepseek,
        llama4,
        encoders,
        encoder_decoders,
        states,
        diffusion,
    )
    for model_type, family in kin.FAMILIES.items()
}
"""model_type -> its entry."""
