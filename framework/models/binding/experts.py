"""Experts bound on one of the ranks that share them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...plan import BoundKernel
from ..architecture import Moe
from ..expert_balancer import ExpertBalancer
from ..expert_map import ExpertMap
from ..layers.experts import Exchange, GatheredExperts, Placement, SpreadExperts
from ..layers.linear import bind_reduce
from ..parallel import Parallel
from ..parts import Part
from ..ranks import layer_shares
from .layer import LayerBinder


def bind_experts(binder: LayerBinder, parts: dict[str, Part], moe: Moe) -> BoundKernel:
    """Those that are here."""
    part, ep = parts["w13"], binder.parallel.ep
    experts = binder.weights.load_experts(part, parts["w2"])
    params = {**experts.params, "expert_start": 0, **moe.variant}
    if part.share is not None:
        params |= {"partial": True, "expert_start": ep.rank * part.num_experts if ep.size > 1 else 0}
    return binder.plan.bind(experts.op, experts.tensors, params, {"top_k": moe.top_k}, note=experts.note)


def spread_experts(binder: LayerBinder, experts: BoundKernel, moe: Moe, layer: int) -> SpreadExperts:
    """Also where all ranks have a part of every expert. layer: counted over the model."""
    tp, dp, ep, placed = binder.parallel.tp, binder.parallel.dp, binder.parallel.ep, binder.parallel.experts
    found = SpreadExperts(experts, moe.top_k)
    if placed is not None:
        found.placement = Placement(placed.slots[layer], moe.num_experts, ep.size, dp.rank, binder.device)
    if binder.lockstep is not None:
        num_slots = moe.num_experts if placed is None else len(placed.slots[layer])
        found.exchange = Exchange(_exchange(binder, experts, num_slots), binder.lockstep)
    if tp.size > 1:
        found.reduce = bind_reduce(binder.plan, tp.group, binder.dtype)
    return found


def expert_balancer(binder: LayerBinder) -> ExpertBalancer | None:
    """None for experts that stay where they are."""
    placed = binder.parallel.experts
    if placed is None:
        return None
    return ExpertBalancer(binder.parallel.ep.rank, placed, binder.spread, binder.plan, partial(_moved, binder))


def exchange_calls(parallel: Parallel, dtype: torch.dtype) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """How schedulers' ranks share experts: what ``moe_exchange`` binds beside those, None where it cannot be; and what the ops bind
    whose work it does."""
    tp, group = parallel.tp, parallel.dp.group
    scatter = {"group": group, "out_dtype": dtype if tp.size == 1 else None}
    separate = {"all_gather": {"group": group, "dim": 0}, "reduce_scatter": scatter}
    return scatter if tp.size == 1 else None, separate  # else ranks of a group have but a part of the slots


def _exchange(binder: LayerBinder, experts: BoundKernel, num_slots: int) -> GatheredExperts | BoundKernel:
    plan = binder.plan
    params, separate = exchange_calls(binder.parallel, binder.dtype)
    if params is not None:
        params = {"experts": experts, "num_slots": num_slots, **params}
        if (fused := plan.bind_fused("moe_exchange", separate, {}, params, {})) is not None:
            return fused
    gather, scatter = (plan.bind(op, params=params) for op, params in separate.items())
    return GatheredExperts(gather, experts, scatter)


def _moved(binder: LayerBinder, layer: int, wanted: ExpertMap) -> BoundKernel:
    """A layer's experts that are here by another map."""
    moe = binder.a.layers[layer].moe
    assert moe is not None
    parallel = replace(binder.parallel, experts=wanted)
    return bind_experts(binder, layer_shares(binder.a, binder.whole, layer, parallel), moe)
