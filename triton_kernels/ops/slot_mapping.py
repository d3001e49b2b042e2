"""``slot_mapping``: where in the paged cache each token of a step lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ..cases.slot_mapping import CASES
from ..op import Cost, Op, Tolerance


def reference(
    positions: torch.Tensor, cu_q: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor, page_size: int
) -> torch.Tensor:
    """slot int64 [T] = block_table[r, position // page_size] * page_size + position % page_size, of the request r that owns
    the token: cu_q[r] <= token < cu_q[r + 1].

    positions int64 [T], absolute; cu_q int32 [R + 1], rising from 0; seq_lens int32 [R]; all contiguous. block_table int32
    [R, B], rows contiguous, at any distance from each other; page of logical block b of request r. -1 (``kv_cache_write``
    skips it) for tokens from cu_q[R] on, and for tokens of a request of length 0, which is padding.
    """
    slots = torch.full_like(positions, -1)
    for request, (first, last) in enumerate(pairwise(cu_q.tolist())):
        if int(seq_lens[request]) > 0:
            own = positions[first:last]
            slots[first:last] = block_table[request].long()[own // page_size] * page_size + own % page_size
    return slots


def fake(positions, cu_q, seq_lens, block_table, page_size):  # type: ignore[no-untyped-def]
    return positions.new_empty(positions.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: none. A token reads its position and page and writes its slot; a request has two more integers."""
    return Cost(0, 20 * sum(q_lens) + 8 * len(q_lens))


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"page_size": bound["page_size"]}


slot_mapping = Op(
    "slot_mapping", reference, fake, cost, cases=CASES, bind_args=("page_size",), facts=facts, tolerance=Tolerance(exact=True)
)
