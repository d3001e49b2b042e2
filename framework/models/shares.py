"""A rank's share of tensors that are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

from .parts import Part
from .quantization.scheme import LoadedPart


def own_weight(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """whole [(E,) R(, K)] -> what of it ``part`` holds, with zeros for rows that were added; contiguous."""
    rows, columns, experts = part.own
    if part.num_experts:
        whole = whole[experts.start : experts.stop]
    found = _own_rows(whole, part, rows, 1 if part.num_experts else 0)
    return found if part.columns is None else found[..., columns.start : columns.stop].contiguous()


def own_bias(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """whole [(E,) R] -> that of the rows that ``part`` holds: all of them where ranks share columns."""
    rows, _, experts = part.own
    if part.num_experts:
        whole = whole[experts.start : experts.stop]
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
    return tuple(found)


def _own_part(loaded: LoadedPart, rows: Sequence[range], columns: range, part: Part) -> LoadedPart:
    assert part.share is not None
    name = part.sources[0]
    total, is_cut = part.share[0].columns or 0, len(columns) != part.share[0].columns
    perm = loaded.tensors.get("perm")
    if is_cut and perm is not None:
        raise ValueError(
            f"{name} cannot be cut among ranks: its columns are ordered by activation (desc_act), so that a rank's inputs belong "
            "to weights of all; set parallel.tp=1, or quantize the model without desc_act"
        )
    tensors: dict[str, torch.Tensor | None] = {}
    for key, tensor in loaded.tensors.items():
        if tensor is None or key == "perm":
            tensors[key] = tensor
            continue
        if tensor.shape[0] == loaded.num_rows:
            tensor = torch.cat([tensor[r.start : r.stop] for r in rows])
        elif tensor.shape[0] > 1:  # scales of blocks
            tensor = torch.cat([tensor[slice(*_whole_units(name, r, FP8_BLOCK))] for r in rows])
        if is_cut and tensor.dim() == 2 and tensor.shape[1] > 1:
            tensor = tensor[:, slice(*_whole_units(name, columns, total // tensor.shape[1]))]
        tensors[key] = tensor.contiguous()
    return replace(loaded, tensors=tensors)


def _whole_units(name: str, own: range, size: int) -> tuple[int, int]:
    if own.start % size or own.stop % size:
        raise ValueError(
            f"{name} cannot be cut among ranks: numbers {own.start} to {own.stop - 1} are no whole groups of {size} weights with "
            "one scale; choose a smaller parallel.tp"
        )
    return own.start // size, own.stop // size


def _own_rows(whole: torch.Tensor, part: Part, rows: Sequence[range], dim: int) -> torch.Tensor:
    pieces = []
    for own, count in zip(rows, part.pieces or part.rows):
        piece = whole.narrow(dim, own.start, len(own))
        if len(own) < count:
            piece = torch.cat((piece, piece.new_zeros(*piece.shape[:dim], count - len(own), *piece.shape[dim + 1 :])), dim)
        pieces.append(piece)
    return torch.cat(pieces, dim)
