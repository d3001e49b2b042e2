"""Concrete inputs of every op: small odd ones for tests, large ones (tag "bench") for benchmarks and rooflines."""

from __future__ import annotations

import torch

SMALL, TILED, BENCH = frozenset({"odd"}), frozenset({"odd", "tiled"}), frozenset({"bench"})


def randn(generator: torch.Generator, dtype: torch.dtype, device: torch.device, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, drawn in float32 on the generator's device and rounded once: the same on every device."""
    return (torch.randn(shape, generator=generator, device=generator.device) * scale).to(dtype).to(device)
