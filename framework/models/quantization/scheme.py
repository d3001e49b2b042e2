"""The seam between checkpoints and kernels: a part of a model becomes ops and what they bind."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

from ..parts import Part
from .packing import concatenated

WIDE_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Which dtypes scales and unquantized weights may have on disk."""


@dataclass(frozen=True)
class LoadedPart:
    """A part, or some of its rows, ready to be bound.

    op       what computes it: linear, gemm_w4a16, gemm_w8a16, gemm_int8, gemm_fp8; of experts moe_experts
    tensors  bound arguments of the op by name, in its canonical layout, fresh or views that belong to the caller
    params   further bound arguments (out_dtype, ...)
    input    an op of its own that the input goes through first (quantize_activation); None where the GEMM takes it as it is
    note     for the plan: in which way this is not what the checkpoint says
    """

    op: str
    tensors: Mapping[str, torch.Tensor | None]
    params: Mapping[str, Any] = field(default_factory=dict)
    input: LoadedPart | None = None
    note: str = ""

    @property
    def num_rows(self) -> int:
        """Outputs of a linear layer."""
        return next(self.tensors[name] for name in ("qweight", "weight") if name in self.tensors).shape[0]  # type: ignore[union-attr]


def one_input(parts: Sequence[LoadedPart]) -> bool:
    """Whether the parts take activations that are quantized in the same way, or not at all."""
    return all(_same_input(parts[0], part) for part in parts[1:])


def _same_input(first: LoadedPart, second: LoadedPart) -> bool:
    a, b = first.input, second.input
    if a is None or b is None:
        return a is b
    return a.op == b.op and a.params == b.params and all(same(a.tensors[name], b.tensors[name]) for name in a.tensors)


def same(x: torch.Tensor | None, y: torch.Tensor | None) -> bool:
    """Whether both are None, or have the same numbers."""
    return x is y or (x is not None and y is not None and torch.equal(x, y))


class TensorSource(Protocol):
    """Where a scheme finds tensors, on the device. dtype: of the model."""

    device: torch.device
    dtype: torch.dtype

    def weight(self, part: Part) -> torch.Tensor:
        """The part's weight (``part.shape``) in the model's dtype, which the checkpoint holds as floats."""

    def bias(self, part: Part) -> torch.Tensor | None:
        """The part's bias in the model's dtype, if it has one."""

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of that name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor of the checkpoint."""

    def stored(
        self, name: str, shape: tuple[int, ...] | None, *dtypes: torch.dtype, index: tuple[slice, ...] | None = None
    ) -> torch.Tensor:
        """A tensor of the checkpoint, named as in ``Part.tensors``, as it lies there; of its shape what ``index`` says. shape None:
        any. Floats of 16 and more bits in none of ``dtypes`` are converted to the first. Raises ValueError for another shape or
        dtype, and for such floats (scales) that are NaN or infinite."""


class Scheme(Protocol):
    """A way to store the weights of linear layers and of experts. Norms and embeddings are floats in every scheme."""

    def names(self, part: Part, source: TensorSource) -> Iterable[str]:
        """The tensors of the checkpoint that hold a part."""

    def linear(self, part: Part, source: TensorSource) -> tuple[LoadedPart, ...]:
        """A linear layer: one part for all rows, or several for some rows each, in order, where one op cannot compute them
        together. Raises ValueError for what the format cannot hold."""

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        """The experts of a layer: gate and up, and down."""

    def num_bytes(self, part: Part, dtype: torch.dtype) -> float:
        """Memory of a part's weights once they are loaded, its scales included, in a model of ``dtype``. An estimate: it counts
        scales of 2 bytes for float activations, of 4 for quantized ones, and no padding."""


class WholeNeeded(Exception):
    """A rank's share is not to be had from its share of what lies in the checkpoint."""


ROWS, COLUMNS, ALL = range(3)
Axis = tuple[int, int, int]
"""What a dimension of a stored tensor counts: (ROWS or COLUMNS, values, elements), so many values in so many elements; of ALL,
which ranks do not cut, the values are the size."""


@dataclass(frozen=True)
class Module:
    """A linear layer as checkpoints know it: its name there, and how many outputs (rows) and inputs (columns) it has.

    share  what a rank has of it, and these count: ranges of rows in order, columns, and the shape of all; None: that is all
    """

    name: str
    rows: int
    columns: int
    share: tuple[tuple[range, ...], range, tuple[int, int]] | None = None

    def stored(self, source: TensorSource, name: str, axes: Sequence[Axis], *dtypes: torch.dtype) -> torch.Tensor:
        """As ``TensorSource.stored``: of the module, which may be a share. Raises WholeNeeded where that begins or ends amid what
        one element holds."""
        totals = (*self.whole, 0)
        shape = tuple(values if axis == ALL else -(-totals[axis] * size // values) for axis, values, size in axes)
        if self.share is None:
            return source.stored(name, shape, *dtypes)
        own = (self.share[0], (self.share[1],))
        slices = [
            [slice(0, values)] if axis == ALL else [_elements(part, totals[axis], values, size) for part in own[axis]]
            for axis, values, size in axes
        ]
        pieces = [source.stored(name, shape, *dtypes, index=index) for index in itertools.product(*slices)]
        by_rows = [axis for axis, *_ in axes].index(ROWS) if len(pieces) > 1 else 0
        return pieces[0] if len(pieces) == 1 else concatenated(pieces, by_rows)

    def groups(self, group_size: int) -> Axis:
        """Of a tensor with an element for each group of a row. Raises as ``num_groups``."""
        self.num_groups(group_size)
        return (ALL, 1, 1) if group_size in (-1, self.whole[1]) else (COLUMNS, group_size, 1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def whole(self) -> tuple[int, int]:
        """The shape on disk."""
        return self.shape if self.share is None else self.share[2]

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Of 128 x 128, along rows and columns."""
        return -(-self.rows // FP8_BLOCK), -(-self.columns // FP8_BLOCK)

    def num_groups(self, group_size: int) -> int:
        """Groups of a row; group_size -1: one. Raises ValueError if the group size does not divide the inputs."""
        if group_size in (-1, self.whole[1]):
            return 1
        if self.columns % group_size:
            if self.share is not None:
                raise WholeNeeded
            raise ValueError(f"{self.name}: the group size {group_size} does not divide its {self.columns} inputs")
        return self.columns // group_size


def _elements(own: range, total: int, values: int, size: int) -> slice:
    """Those that hold some of ``total`` values."""
    if own.start % values or (own.stop % values and own.stop != total):
        raise WholeNeeded
    return slice(own.start * size // values, -(-own.stop * size // values))


class Format(ABC):
    """How one module lies in a checkpoint.

    sliced  whether ``load`` takes a module that is a share
    """

    sliced: ClassVar[bool] = False

    @abstractmethod
    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        """Its tensors, those that it need not have only where the source holds them."""

    @abstractmethod
    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        """As ``Scheme.num_bytes``. expert: of a mixture of experts, of which ``moe_experts`` knows fewer kinds."""

    def orders_inputs(self, num_inputs: int) -> bool:
        """Whether weights with one scale are not those of adjacent inputs."""
        return False

    @abstractmethod
    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        """Without its bias. Raises ValueError for tensors that do not fit together, and of a share WholeNeeded."""
