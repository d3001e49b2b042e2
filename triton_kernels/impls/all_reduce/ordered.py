"""``all_reduce`` as an all-gather and a sum in float32 whose order is fixed: neighbouring ranks in pairs, then pairs. Each rank
adds everything itself, so n ranks move n times what an all-reduce has to. For results that depend neither on the size of a message
nor, beside ``linear:tree``, on the number of ranks."""

from __future__ import annotations

import torch

from ...group import Group
from ...impl import Flags, impl
from .._shared.rank_sums import rounded, tree_sum


@impl("all_reduce", "ordered", priority=20, flags=Flags(batch_invariant=True, rank_invariant=True))
def all_reduce_ordered(
    x: torch.Tensor, group: Group, bias: torch.Tensor | None = None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    return rounded(tree_sum(group.all_gather(x)), bias, out_dtype or x.dtype)
