"""From the packed tensors of GPTQ and AWQ checkpoints to the canonical 4-bit layout of ``gemm_w4a16``. Nothing is rounded."""

from __future__ import annotations

from typing import NamedTuple

import torch

from triton_kernels.ops.gemm import pack_int4, unpack_int4

VALUES_PER_WORD = 8
SYMMETRIC_ZERO = 8
AWQ_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


class CanonicalInt4(NamedTuple):
    """The bound arguments of ``gemm_w4a16``, by their names there.

    qweight  int32 [N, K/8]; scales [N, K/G] in the checkpoint's dtype; zeros uint8 [N, K/G], None where all are 8
    perm     int32 [K]: column j belongs to x[:, perm[j]]; None where groups are adjacent columns in order
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    perm: torch.Tensor | None


def gptq_to_canonical(
    qweight: torch.Tensor, qzeros: torch.Tensor | None, scales: torch.Tensor, g_idx: torch.Tensor | None = None, *, zero_offset: int
) -> CanonicalInt4:
    """GPTQ: eight quantized values per word along K, eight zero points per word along N, the first in the lowest bits.

    qweight  int32 [K/8, N]; qzeros int32 [K/G, N/8] or None (all 8); scales [K/G, N]
    g_idx    int [K], the group of each input feature; None where groups are adjacent
    zero_offset  what is to be added to stored zero points, modulo 16: 1 for checkpoint format "gptq", 0 for "gptq_v2"
    Raises ValueError for shapes that do not fit together, or groups of unequal size.
    """
    num_in, num_out = VALUES_PER_WORD * qweight.shape[0], qweight.shape[1]
    _check_groups("GPTQ", num_in, num_out, scales, qzeros, (scales.shape[0], num_out // VALUES_PER_WORD))
    quantized = unpack_int4(qweight.T.contiguous())
    zeros = None if qzeros is None else (unpack_int4(qzeros) + zero_offset) & 15
    perm = None if g_idx is None else _sorted_by_group(g_idx, scales.shape[0])
    if perm is not None:
        quantized = quantized[:, perm.long()]
    return CanonicalInt4(pack_int4(quantized), scales.T.contiguous(), _transposed_zeros(zeros), perm)


def awq_to_canonical(qweight: torch.Tensor, qzeros: torch.Tensor | None, scales: torch.Tensor) -> CanonicalInt4:
    """AWQ ("gemm"): eight columns per word along N, in the order 0 2 4 6 1 3 5 7 from the lowest bits; zero points as stored.

    qweight  int32 [K, N/8]; qzeros int32 [K/G, N/8] or None (all 8); scales [K/G, N]
    Raises ValueError for shapes that do not fit together.
    """
    num_in, num_out = qweight.shape[0], VALUES_PER_WORD * qweight.shape[1]
    _check_groups("AWQ", num_in, num_out, scales, qzeros, (scales.shape[0], num_out // VALUES_PER_WORD))
    quantized = _awq_columns(qweight).T.contiguous()
    zeros = None if qzeros is None else _awq_columns(qzeros)
    return CanonicalInt4(pack_int4(quantized), scales.T.contiguous(), _transposed_zeros(zeros), None)


def _awq_columns(words: torch.Tensor) -> torch.Tensor:
    """uint8 [R, N] in the order of columns, from int32 [R, N/8]."""
    nibbles = unpack_int4(words).unflatten(-1, (-1, VALUES_PER_WORD))
    columns = torch.empty_like(nibbles)
    columns[..., list(AWQ_COLUMN_OF_NIBBLE)] = nibbles
    return columns.flatten(-2)


def _sorted_by_group(g_idx: torch.Tensor, num_groups: int) -> torch.Tensor | None:
    """The order of input features that puts groups one after another, None if they are in that order."""
    counts = torch.bincount(g_idx.long(), minlength=num_groups)
    if len(counts) != num_groups or bool((counts != len(g_idx) // num_groups).any()):
        raise ValueError(
            f"g_idx has groups of {sorted(set(counts.tolist()))} input features in {len(counts)} groups; expected {num_groups} "
            f"groups (one per row of scales) of equal size. Requantize the layer with a group size that divides {len(g_idx)}."
        )
    order = torch.argsort(g_idx.long(), stable=True).int()
    return None if bool((g_idx.diff() >= 0).all()) else order


def _transposed_zeros(zeros: torch.Tensor | None) -> torch.Tensor | None:
    """uint8 [N, K/G] from [K/G, N]; None where all are 8, which the GEMMs treat without loading any."""
    return None if zeros is None or bool((zeros == SYMMETRIC_ZERO).all()) else zeros.T.contiguous()


def _check_groups(
    kind: str, num_in: int, num_out: int, scales: torch.Tensor, qzeros: torch.Tensor | None, zeros_shape: tuple[int, int]
) -> None:
    if scales.dim() != 2 or scales.shape[1] != num_out or num_in % scales.shape[0]:
        raise ValueError(
            f"{kind} scales have the shape {list(scales.shape)}; weights of {num_in} input and {num_out} output features need "
            f"[groups, {num_out}], where the number of groups divides {num_in}. The tensors belong to different layers or formats."
        )
    if qzeros is not None and tuple(qzeros.shape) != zeros_shape:
        raise ValueError(
            f"{kind} qzeros have the shape {list(qzeros.shape)} instead of {list(zeros_shape)}: eight zero points of adjacent "
            "output features per word. The tensors belong to different layers or formats."
        )
