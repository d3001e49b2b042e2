"""Schemes that need more than the weights: what is served is a checkpoint made once, and kept."""

from __future__ import annotations

from dataclasses import replace

from ...config import CALIBRATED_SCHEMES, QuantConfig
from ..architecture import ModelInfo
from ..hub import read_json
from .settings import checkpoint_settings


def calibrated(model: ModelInfo, quant: QuantConfig) -> tuple[ModelInfo, QuantConfig]:
    """The model with its quantized checkpoint in place of the one of floats, where the scheme needs calibration; else as it is.
    Raises ValueError for a model that has no checkpoint to begin with."""
    if quant.scheme not in CALIBRATED_SCHEMES:
        return model, quant
    if model.folder is None or model.quantization is not None:
        found = "is quantized already" if model.quantization else "has no checkpoint"
        raise ValueError(f"quant.scheme={quant.scheme} is made from a checkpoint of floats, but model {model.name!r} {found}")
    from ...quantize import cached_checkpoint  # slow to import, and needed for few models

    folder = cached_checkpoint(str(model.folder), quant)
    quantization = checkpoint_settings(read_json(folder, "config.json"), folder)
    return replace(model, folder=folder, quantization=quantization), QuantConfig(fuse=quant.fuse)
