"""Concrete inputs of every op: small odd ones for tests, large ones (tag "bench") for benchmarks and rooflines."""

from __future__ import annotations

import math

import torch

SMALL, TILED, BENCH = frozenset({"odd"}), frozenset({"odd", "tiled"}), frozenset({"bench"})


_LARGE = 1 << 22


def randn(generator: torch.Generator, dtype: torch.dtype, device: torch.device, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, drawn in float32 and rounded once. Small tensors are the same on every device; large ones are drawn on the
    device itself, because a CPU would take longer than a benchmark."""
    if device.type != "cpu" and math.prod(shape) > _LARGE:
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=generator.device) * scale).to(dtype).to(device)
