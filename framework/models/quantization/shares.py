"""A rank's share of tensors that are whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from triton_kernels.ops.gemm import FP8_BLOCK
from triton_kernels.ops.moe import fp8_granularity

from ..parts import Part
from .modules import ModuleScheme
from .scheme import LoadedPart, Scheme


def own_weight(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """whole [(E,) R(, K)] -> what of it ``part`` holds, with zeros for rows that were added; contiguous."""
    rows, columns, experts = part.own
    if part.num_experts:
        whole = whole[list(experts)]
    found = _own_rows(whole, part, rows, 1 if part.num_experts else 0)
    return found if part.columns is None else found[..., columns.start : columns.stop].contiguous()


def own_bias(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """whole [(E,) R] -> that of the rows that ``part`` holds: all of them where ranks share columns."""
    rows, _, experts = part.own
    if part.num_experts:
        whole = whole[list(experts)]
    return _own_rows(whole, part, rows, 1 if part.num_experts else 0)


def own_linear(whole: Sequence[LoadedPart], part: Part) -> tuple[LoadedPart, ...]:
    """Of a linear layer as it was loaded. Raises ValueError for a cut within a group of weights with one scale, or of columns whose
    order is not that of the inputs."""
    rows, columns, _ = part.own
    found, start = [], 0
    for loaded in whole:
        inside = [range(max(r.start, start), min(r.stop, start + loaded.num_rows)) for r in rows]
        own = [range(r.start - start, r.stop - start) for r in inside if r.start < r.stop]
        start += loaded.num_rows
        if own:
            found.append(_own_part(loaded, own, columns, part))
    if not found:
        found = [_own_part(whole[0], [range(0, 0)], columns, part)]
    if added := sum(part.rows) - sum(loaded.num_rows for loaded in found):
        found[-1] = _with_zeros(found[-1], added)
    return tuple(found)


def own_experts(whole: LoadedPart, w13: Part, w2: Part) -> LoadedPart:
    """The same of the experts of a layer."""
    w13_weight = whole.tensors["w13"]
    assert w13_weight is not None
    blocks = fp8_granularity(w13_weight, whole.tensors.get("w13_scale")) == "group"
    tensors: dict[str, torch.Tensor | None] = {}
    for key, tensor in whole.tensors.items():
        part = w13 if key.startswith("w13") else w2
        if tensor is not None and part.share is not None:
            rows, columns, experts = part.own
            tensor = _cut(tensor[list(experts)], part, rows, columns, dim=1, blocks=blocks)
        tensors[key] = tensor
    return replace(whole, tensors=tensors)


def check_shares(parts: Iterable[Part], scheme: Scheme) -> None:
    """Raises ValueError for what of a rank's shares cannot be had of weights that are stored like that, from the config alone."""
    if not isinstance(scheme, ModuleScheme):
        return
    for part in parts:
        if part.share is None or part.columns == part.share[0].columns or part.is_packed:
            continue
        for name in (name.removesuffix(".weight") for name, *_ in part.tensors()):
            found = scheme.format_of(name)
            if found is not None and found.orders_inputs(part.share[0].columns or 0):
                raise _ordered(name)


def _ordered(name: str) -> ValueError:
    return ValueError(
        f"{name} cannot be cut among ranks: its columns are ordered by activation (desc_act), so that a rank's inputs belong "
        "to weights of all; set parallel.tp=1, or quantize the model without desc_act"
    )


def _own_part(loaded: LoadedPart, rows: Sequence[range], columns: range, part: Part) -> LoadedPart:
    assert part.share is not None
    name = part.sources[0]
    if loaded.tensors.get("perm") is not None and part.columns != part.share[0].columns:
        raise _ordered(name)
    blocks = loaded.input is not None and loaded.input.params["granularity"] == "group"
    tensors = {
        key: tensor if tensor is None or key == "perm" else _cut(tensor, part, rows, columns, dim=0, blocks=blocks)
        for key, tensor in loaded.tensors.items()
    }
    return replace(loaded, tensors=tensors)


def _with_zeros(loaded: LoadedPart, added: int) -> LoadedPart:
    """With so many more rows, whose results are 0."""
    count = loaded.num_rows
    tensors = {
        key: tensor
        if tensor is None or key == "perm" or tensor.shape[0] != count
        else torch.cat((tensor, tensor.new_zeros(added, *tensor.shape[1:])))
        for key, tensor in loaded.tensors.items()
    }
    return replace(loaded, tensors=tensors)


def _cut(tensor: torch.Tensor, part: Part, rows: Sequence[range], columns: range, dim: int, blocks: bool) -> torch.Tensor:
    """rows: of those that the tensor has, or has scales of, along ``dim``; columns come after it, where there are any. blocks:
    whether what has fewer of them than the weight has one for ``FP8_BLOCK``."""
    assert part.share is not None
    name, total = part.sources[0], part.share[0].columns or 0
    if tensor.shape[dim] > 1:
        unit = FP8_BLOCK if tensor.shape[dim] < rows[-1].stop else 1
        tensor = torch.cat([tensor.narrow(dim, *_units(name, own, unit)) for own in rows], dim)
    if len(columns) < total and tensor.dim() > dim + 1 and tensor.shape[dim + 1] > 1:
        unit = FP8_BLOCK if blocks and tensor.shape[dim + 1] < total else total // tensor.shape[dim + 1]
        tensor = tensor.narrow(dim + 1, *_units(name, columns, unit))
    return tensor.contiguous()


def _units(name: str, own: range, size: int) -> tuple[int, int]:
    """(first, number) of the groups of ``size``."""
    if own.start % size or own.stop % size:
        raise ValueError(
            f"{name} cannot be cut among ranks: numbers {own.start} to {own.stop - 1} are no whole groups of {size} weights with "
            "one scale; choose a smaller parallel.tp"
        )
    return own.start // size, len(own) // size


def _own_rows(whole: torch.Tensor, part: Part, rows: Sequence[range], dim: int) -> torch.Tensor:
    pieces = []
    for own, count in zip(rows, part.pieces or part.rows):
        piece = whole.narrow(dim, own.start, len(own))
        if len(own) < count:
            piece = torch.cat((piece, piece.new_zeros(*piece.shape[:dim], count - len(own), *piece.shape[dim + 1 :])), dim)
        pieces.append(piece)
    return torch.cat(pieces, dim)
