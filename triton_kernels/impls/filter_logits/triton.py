"""``filter_logits`` without a sort, in three kernels, with the search of ``sample``. Scan, grid (rows, blocks of the vocabulary):
the best score and the mass of every ``group`` tokens. Search, grid (rows): the last token that is kept (``sample/_filters.py``).
Mask, grid (rows, blocks): reads the logits again and writes them. Rows without filters are copied.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.launch import Launch
from ..sample._filters import find_border
from ..sample._keys import LEAST_KEY, at_least, load_groups, row_mass
from ..sample._rows import SEARCH_OPTIONS, cut_rows, load_filters
from ..sample._scan import is_filtered, scan_groups
from ..sample._scores import load_logits, scores_of


@triton.jit
def _scan_kernel(
    logits_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    groups_ptr,
    num_tokens,
    logits_stride,
    groups_stride,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    seat = tl.load(row_to_seat_ptr + row)
    if seat < 0:
        return
    temperature, top_k, top_p, min_p = load_filters(seat, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr)
    if is_filtered(temperature, top_k, top_p, min_p, num_tokens):
        tokens = block * BLOCK + tl.arange(0, BLOCK)
        logits = load_logits(logits_ptr + row * logits_stride, tokens, tokens < num_tokens)
        scan_groups(logits, temperature, groups_ptr + row * groups_stride, block, tl.num_programs(1), GROUP, BLOCK)


@triton.jit
def _search_kernel(
    logits_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    groups_ptr,
    border_ptr,
    num_tokens,
    logits_stride,
    groups_stride,
    num_groups,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    SETS: tl.constexpr,
    TILE: tl.constexpr,
    SURVIVORS: tl.constexpr,
):
    """The key of the last token that is kept, or one below all."""
    row = tl.program_id(0).to(tl.int64)
    seat = tl.load(row_to_seat_ptr + row)
    border = tl.zeros([], tl.int64) + LEAST_KEY
    if seat >= 0:
        temperature, top_k, top_p, min_p = load_filters(seat, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr)
        if is_filtered(temperature, top_k, top_p, min_p, num_tokens):
            groups = (groups_ptr + row * groups_stride, num_groups)
            group_best, group_mass, _first = load_groups(groups, GROUPS, GROUP)
            best = tl.max(group_best, 0)
            if (best > float("-inf")) & (best < float("inf")):
                scored = (logits_ptr + row * logits_stride, num_tokens, temperature, best)
                mass = row_mass(group_best, group_mass, best)
                border, _upper, _list_ptr, _num, _some = find_border(
                    scored, groups, mass, top_k, top_p, min_p, SETS, GROUPS, GROUP, TILE, SURVIVORS
                )
    tl.store(border_ptr + row, border)


@triton.jit
def _mask_kernel(
    logits_ptr, row_to_seat_ptr, temperature_ptr, border_ptr, out_ptr, num_tokens, logits_stride, out_stride, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = tokens < num_tokens
    logits = tl.load(logits_ptr + row * logits_stride + tokens, mask=mask)
    border = tl.load(border_ptr + row)
    if border > LEAST_KEY:
        temperature = tl.load(temperature_ptr + tl.load(row_to_seat_ptr + row))
        logits = tl.where(at_least(scores_of(logits.to(tl.float32), temperature), tokens, border), logits, float("-inf"))
    tl.store(out_ptr + row * out_stride + tokens, logits, mask=mask)


_SCAN = Launch(_scan_kernel, num_warps=4, enable_fp_fusion=True)
_SEARCH = Launch(_search_kernel, num_warps=8, num_stages=1, enable_fp_fusion=True)
_MASK = Launch(_mask_kernel, num_warps=4, enable_fp_fusion=True)


@impl("filter_logits", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options=SEARCH_OPTIONS)
def filter_logits(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    **options: int,
) -> torch.Tensor:
    num_rows, num_tokens = logits.shape
    out = logits.new_empty(num_rows, num_tokens)
    if num_rows == 0:
        return out
    cut = cut_rows(logits, **options)
    border = logits.new_empty(num_rows, dtype=torch.int64)
    blocks = (num_rows, cut.num_blocks)
    inputs = (logits, row_to_seat, temperature, top_k, top_p, min_p, cut.groups)
    sizes = (num_tokens, logits.stride(0), cut.groups.stride(0))
    _SCAN(blocks, *inputs, *sizes, GROUP=cut.search["GROUP"], BLOCK=cut.block)
    _SEARCH((num_rows,), *inputs, border, *sizes, cut.num_groups, **cut.search)
    strides = (logits.stride(0), out.stride(0))
    _MASK(blocks, logits, row_to_seat, temperature, border, out, num_tokens, *strides, BLOCK=cut.block)
    return out
