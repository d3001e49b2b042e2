"""Scales of the KV cache in a checkpoint: one number for the keys of a layer, one for its values."""

from __future__ import annotations

import torch

from .fp8 import single
from .scheme import TensorSource

TENSORS = (r"\.([qkv]|kv|prob)_scale$", r"\.[kv]_proj\.output_scale$", r"\.[kv]_(zero_point|observer\..*)$")
"""Regular expressions of the names that tools give them, and of what a cache here has no use for."""


def kv_scales(attention: str, source: TensorSource) -> tuple[torch.Tensor, torch.Tensor] | None:
    """f32 [1, 1] for keys and for values of an attention module, named as on disk; None where the checkpoint has none, or says so
    by a number below 0. Raises ValueError where only one of them is there."""
    keys, values = _scale("k", attention, source), _scale("v", attention, source)
    if (keys is None) != (values is None):
        raise ValueError(f"{attention} has a scale for cached {'values' if keys is None else 'keys'} alone; a cache needs both")
    return None if keys is None or values is None else (keys, values)


def _scale(letter: str, attention: str, source: TensorSource) -> torch.Tensor | None:
    places = (f"{letter}_scale", f"attn.{letter}_scale", f"{letter}_proj.{letter}_scale", f"{letter}_proj.output_scale", "kv_scale")
    for name in (f"{attention}.{place}" for place in places):
        if source.holds(name):
            scale = single(name, source)
            return scale if bool(scale > 0) else None
    return None
