"""Sums over ranks: in what order, and how they become a result."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ...spec import Spec


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that it is summed in: float32, or float64 as references give it."""
    return x if x.dtype == torch.float64 else x.float()


def tree_sum(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """A new tensor: neighbours are added in pairs, then these sums in pairs, and so on. So a half of the parts (of a power of two)
    adds up to what enters the last addition, whoever has added it."""
    sums = [wide(part) for part in parts]
    if len(sums) == 1:
        return sums[0].clone()
    while len(sums) > 1:
        last = sums[len(sums) & ~1 :]
        sums = [left + right for left, right in zip(sums[::2], sums[1::2])] + last
    return sums[0]


def rounded(total: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """``total`` + bias in ``dtype``."""
    return (total if bias is None else total + bias).to(dtype)


def backend_reasons(spec: Spec, *backends: str) -> list[str]:
    """A reason where the group's tensors pass by something else."""
    backend = spec.fact("backend", backends[0])
    return [] if backend in backends else [f"serves groups of {' and '.join(backends)}, this one is of {backend}"]
