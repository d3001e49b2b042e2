"""How rows are cut, and the parameters of one: of ``sample`` and of ``filter_logits``, which search the same border."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from .._shared.launch import cdiv, next_power_of_2

SEARCH_OPTIONS: Final = {"block": 2048, "group": 32, "sets": 256, "tile": 8192, "survivors": 16384}
"""block: tokens of a program that scans; group: tokens of which it leaves the best score and the mass; sets: tokens that are ranked
against each other; tile: tokens that a pass reads at once; survivors: places of a list of tokens."""


class Cut(NamedTuple):
    """block: tokens of a program that scans, num_blocks of them a row; search: constexprs of a kernel that calls ``find_border``;
    groups int32 [R, any]: per row of each of num_groups groups the best score, its mass, and a place in a list of groups; then two
    lists of tokens."""

    block: int
    num_blocks: int
    num_groups: int
    search: dict[str, int]
    groups: torch.Tensor


def cut_rows(logits: torch.Tensor, block: int, group: int, sets: int, tile: int, survivors: int) -> Cut:
    """Of logits [R, V]; the numbers are SEARCH_OPTIONS, or others."""
    num_rows, num_tokens = logits.shape
    assert logits.stride(1) == 1, "the logits of a row must be contiguous"
    block = max(group, min(block, next_power_of_2(num_tokens)))
    num_blocks = cdiv(num_tokens, block)
    num_groups = num_blocks * (block // group)
    survivors = min(survivors, max(sets, next_power_of_2(num_tokens) // 2))
    groups = logits.new_empty(num_rows, 3 * num_groups + 4 * survivors, dtype=torch.int32)
    most_groups = max(sets, next_power_of_2(num_groups))
    search = {"GROUPS": most_groups, "GROUP": group, "SETS": sets, "TILE": tile, "SURVIVORS": survivors}
    return Cut(block, num_blocks, num_groups, search, groups)


@triton.jit
def load_filters(seat, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr):
    return tl.load(temperature_ptr + seat), tl.load(top_k_ptr + seat), tl.load(top_p_ptr + seat), tl.load(min_p_ptr + seat)
