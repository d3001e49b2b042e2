"""``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``: what the ranks of a group compute together; and an all-reduce
with the norm that follows it. Every rank makes the same calls, with x of equal shapes (no rows included); a group of one rank is
legal everywhere.

What is summed are unrounded partial results: float32 from kernels, float64 from references. The sum is rounded once, with the
bias added before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..cases.collectives import (
    ALL_GATHER_CASES,
    ALL_REDUCE_ADD_RMS_NORM_CASES,
    ALL_REDUCE_CASES,
    ALL_TO_ALL_CASES,
    REDUCE_SCATTER_CASES,
)
from ..group import Group
from ..op import Cost, Op, Tolerance
from .norm import rms_norm_reference


def all_reduce_reference(
    x: torch.Tensor, group: Group, bias: torch.Tensor | None = None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The sum of x [T, N] over the ranks, in rank order, + bias [N] once -> [T, N] in ``out_dtype`` (None: x's) on every rank."""
    total = _sum(group.all_gather(x))
    return (total if bias is None else total + bias.double()).to(out_dtype or x.dtype)


def all_gather_reference(x: torch.Tensor, group: Group, dim: Literal[0, 1] = 0) -> torch.Tensor:
    """x [T, N] of all ranks side by side, in rank order: dim 0 -> [size * T, N], dim 1 -> [T, size * N]."""
    return torch.cat(group.all_gather(x), dim)


def reduce_scatter_reference(x: torch.Tensor, group: Group, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """Of the sum of x [size * T, N] over the ranks the rows of this one: rank * T .. (rank + 1) * T - 1 -> [T, N] in ``out_dtype``
    (None: x's)."""
    return _sum([part.chunk(group.size)[group.rank] for part in group.all_gather(x)]).to(out_dtype or x.dtype)


def all_to_all_reference(x: torch.Tensor, group: Group) -> torch.Tensor:
    """x [size * T, N] is one block of T rows for each rank -> [size * T, N]: what each rank has for this one, in rank order."""
    return torch.cat([part.chunk(group.size)[group.rank] for part in group.all_gather(x)])


def all_reduce_add_rms_norm_reference(
    x: torch.Tensor,
    residual: torch.Tensor,
    group: Group,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``all_reduce`` of x [T, N] + bias [N] to the residual's dtype, then ``rms_norm`` with the residual [T, N] (changed in place)
    -> [T, N] in that dtype: what the two give one after the other, so that a model's numbers do not depend on which runs."""
    normed = rms_norm_reference(all_reduce_reference(x, group, bias, residual.dtype), residual, weight, eps, offset)
    assert isinstance(normed, torch.Tensor)
    return normed.to(residual.dtype)


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    total = parts[0].double()
    for part in parts[1:]:
        total = total + part.double()
    return total


def all_reduce_fake(x, group, bias=None, out_dtype=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=out_dtype or x.dtype)


def all_gather_fake(x, group, dim=0):  # type: ignore[no-untyped-def]
    rows, columns = x.shape
    return x.new_empty((group.size * rows, columns) if dim == 0 else (rows, group.size * columns))


def reduce_scatter_fake(x, group, out_dtype=None):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[0] // group.size, x.shape[1]), dtype=out_dtype or x.dtype)


def all_to_all_fake(x, group):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def all_reduce_add_rms_norm_fake(x, residual, *static, **named):  # type: ignore[no-untyped-def]
    return torch.empty_like(residual, memory_format=torch.contiguous_format)


# Costs are those of one rank's memory; what crosses the links between ranks is the network's.


def _moved(dims: Mapping[str, float], q_lens: Sequence[int], read: float, written: float) -> float:
    """Bytes: ``read`` and ``written`` times a [T, N]."""
    act_bytes = dims.get("act_bytes", 2)
    return sum(q_lens) * dims["hidden_size"] * (read * dims.get("partial_bytes", act_bytes) + written * act_bytes)


def all_reduce_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size (columns), ranks, act_bytes, partial_bytes (per element of x; if not those of the result)."""
    return Cost((dims.get("ranks", 1) - 1) * sum(q_lens) * dims["hidden_size"], _moved(dims, q_lens, 1, 1))


def all_gather_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size (columns of one rank), ranks, act_bytes; q_lens are the tokens of one rank."""
    return Cost(0, _moved(dims, q_lens, 1, dims.get("ranks", 1)))


def reduce_scatter_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims as of ``all_reduce``; q_lens are the tokens of one rank's result."""
    ranks = dims.get("ranks", 1)
    return Cost((ranks - 1) * sum(q_lens) * dims["hidden_size"], _moved(dims, q_lens, ranks, 1))


def all_to_all_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size (columns), ranks, act_bytes; q_lens are the tokens of one block."""
    return Cost(0, _moved(dims, q_lens, dims.get("ranks", 1), dims.get("ranks", 1)))


def all_reduce_add_rms_norm_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims as of ``all_reduce``."""
    reduce = all_reduce_cost(dims, q_lens, ctx_lens)
    return Cost(reduce.flops + 4 * sum(q_lens) * dims["hidden_size"], reduce.bytes + _moved(dims, q_lens, 0, 2))


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    """ranks: of the group; backend: what tensors pass by; hidden_size: columns, where a weight tells."""
    group: Group = bound["group"]
    of_weight = {"hidden_size": bound["weight"].shape[0]} if "weight" in bound else {}
    return {"ranks": group.size, "backend": group.backend, **of_weight}


all_reduce = Op(
    "all_reduce",
    all_reduce_reference,
    all_reduce_fake,
    all_reduce_cost,
    cases=ALL_REDUCE_CASES,
    bind_args=("group", "bias", "out_dtype"),
    row_args=("x",),
    facts=facts,
)
all_gather = Op(
    "all_gather",
    all_gather_reference,
    all_gather_fake,
    all_gather_cost,
    cases=ALL_GATHER_CASES,
    bind_args=("group", "dim"),
    row_args=("x",),
    facts=facts,
    tolerance=Tolerance(exact=True),
)
reduce_scatter = Op(
    "reduce_scatter",
    reduce_scatter_reference,
    reduce_scatter_fake,
    reduce_scatter_cost,
    cases=REDUCE_SCATTER_CASES,
    bind_args=("group", "out_dtype"),
    row_args=("x",),
    facts=facts,
)
all_to_all = Op(
    "all_to_all",
    all_to_all_reference,
    all_to_all_fake,
    all_to_all_cost,
    cases=ALL_TO_ALL_CASES,
    bind_args=("group",),
    row_args=("x",),
    facts=facts,
    tolerance=Tolerance(exact=True),
)
all_reduce_add_rms_norm = Op(
    "all_reduce_add_rms_norm",
    all_reduce_add_rms_norm_reference,
    all_reduce_add_rms_norm_fake,
    all_reduce_add_rms_norm_cost,
    cases=ALL_REDUCE_ADD_RMS_NORM_CASES,
    bind_args=("group", "weight", "eps", "offset", "bias"),
    mutates=("residual",),
    row_args=("x", "residual"),
    fuses=("all_reduce", "rms_norm"),
    facts=facts,
)
