"""Experts bound on one of the ranks that share them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...plan import BoundKernel
from ..expert_balancer import ExpertBalancer
from ..expert_map import ExpertMap
from ..layers.experts import Exchange, GatheredExperts, Placement, SpreadExperts
from ..layers.linear import bind_reduce
from ..native import Moe
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


def _exchange(binder: LayerBinder, experts: BoundKernel, num_slots: int) -> GatheredExperts | BoundKernel:
    tp, dp, plan = binder.parallel.tp, binder.parallel.dp, binder.plan
    gather = {"group": dp.group, "dim": 0}
    scatter = {"group": dp.group, "out_dtype": binder.dtype if tp.size == 1 else None}
    if tp.size == 1:  # else ranks of a group have but a part of the slots
        replaced = {"all_gather": gather, "reduce_scatter": scatter}
        params = {"experts": experts, "num_slots": num_slots, **scatter}
        if (fused := plan.bind_fused("moe_exchange", replaced, {}, params, {})) is not None:
            return fused
    return GatheredExperts(plan.bind("all_gather", params=gather), experts, plan.bind("reduce_scatter", params=scatter))


def _moved(binder: LayerBinder, layer: int, wanted: ExpertMap) -> BoundKernel:
    """A layer's experts that are here by another map."""
    moe = binder.a.layers[layer].moe
    assert moe is not None
    parallel = replace(binder.parallel, experts=wanted)
    return bind_experts(binder, layer_shares(binder.a, binder.whole, layer, parallel), moe)
