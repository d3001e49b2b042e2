"""``reduce_scatter`` as an exchange of blocks and a sum in the order of ``all_reduce:ordered``."""

from __future__ import annotations

import torch

from ...group import Group
from ...impl import Flags, impl
from .._shared.rank_sums import tree_sum


@impl("reduce_scatter", "ordered", priority=20, flags=Flags(batch_invariant=True, rank_invariant=True))
def reduce_scatter_ordered(x: torch.Tensor, group: Group, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    own = [part.chunk(group.size)[group.rank] for part in group.all_gather(x)]
    return tree_sum(own).to(out_dtype or x.dtype)
