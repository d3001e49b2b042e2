"""``moe_exchange``: tokens to the ranks that have their experts, and the sums of what these make of them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..cases.moe_exchange import MOE_EXCHANGE_CASES
from ..group import Group
from ..op import Cost, Op
from .collectives import all_gather_cost, all_gather_reference, reduce_scatter_cost, reduce_scatter_reference

Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""x [R, H], weights f32 [R, k], ids int32 [R, k] -> [R, H], unrounded: what this rank's experts add to each row; of ids that are in
no slot of this rank, nothing. R is any number."""


def reference(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    experts: Experts,
    group: Group,
    num_slots: int,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x [T, H], weights f32 [T, k] and ids int32 [T, k] of every rank's own rows -> [T, H] in ``out_dtype`` (None: that of what
    ``experts`` returns): the sum over the ranks of what their ``experts`` make of these rows. ids are slots: rank r has those from
    r * num_slots / size on; below 0 = none. All ranks have as many rows.
    """
    gathered = (all_gather_reference(rows, group) for rows in (x, weights, ids))
    return reduce_scatter_reference(experts(*gathered), group, out_dtype)


def fake(x, weights, ids, experts, group, num_slots, out_dtype=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=out_dtype or torch.float32)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims as of ``reduce_scatter``; q_lens are the tokens of one rank. Without the experts' own."""
    return all_gather_cost(dims, q_lens, ctx_lens) + reduce_scatter_cost(dims, q_lens, ctx_lens)


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    """ranks: of the group; backend: what tensors pass by."""
    return {"ranks": bound["group"].size, "backend": bound["group"].backend}


moe_exchange = Op(
    "moe_exchange",
    reference,
    fake,
    cost,
    cases=MOE_EXCHANGE_CASES,
    bind_args=("experts", "group", "num_slots", "out_dtype"),
    row_args=("x", "weights", "ids"),
    fuses=("all_gather", "reduce_scatter"),
    facts=facts,
)
