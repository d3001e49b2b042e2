"""The seam between checkpoints and kernels: a part of a model becomes (op, bound tensors)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..parts import Part


@dataclass(frozen=True)
class LoadedPart:
    """A part, ready to be bound.

    op       what computes it: linear, gemm_w4a16, gemm_w8a16, gemm_int8, gemm_fp8; of experts moe_experts
    tensors  bound arguments of the op by name, in its canonical layout, fresh or views that belong to the caller
    params   further bound arguments (out_dtype, ...)
    input    an op of its own that the input goes through first (quantize_activation); None where the GEMM takes it as it is
    """

    op: str
    tensors: Mapping[str, torch.Tensor | None]
    params: Mapping[str, Any] = field(default_factory=dict)
    input: LoadedPart | None = None


class TensorSource(Protocol):
    """Where a scheme finds tensors, on the device. dtype: of the model."""

    device: torch.device
    dtype: torch.dtype

    def weight(self, part: Part) -> torch.Tensor:
        """The part's weight (``part.shape``) in the model's dtype, which the checkpoint holds as floats."""

    def bias(self, part: Part) -> torch.Tensor | None:
        """The part's bias in the model's dtype, if it has one."""

    def stored(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the checkpoint, named as in ``Part.tensors``, as it lies there. Floats of 16 and more bits are converted to
        ``dtype``. Raises ValueError for another shape or dtype."""


class Scheme(Protocol):
    """A way to store the weights of linear layers and of experts. Norms and embeddings are floats in every format."""

    def names(self, part: Part) -> Iterable[str]:
        """The tensors of the checkpoint that hold a part."""

    def linear(self, part: Part, source: TensorSource) -> LoadedPart:
        """A linear layer, all its shards together. Raises ValueError for what the format cannot hold."""

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        """The experts of a layer: gate and up, and down."""
