"""The MLP of a layer, bound: dense, or a mixture of experts."""

from __future__ import annotations

import torch

from ...plan import BoundKernel
from ..architecture import Moe
from ..layers.linear import Float32Linear, Linear
from ..layers.mlp import PLAIN, Mlp, MoeMlp, SharedExperts
from ..parts import Part
from .experts import bind_experts, spread_experts
from .layer import LayerBinder


def bind_mlp(binder: LayerBinder, parts: dict[str, Part], up: Linear, name: str = "down") -> Mlp:
    """up: its first linear layer; name: of the part that is its second."""
    if not binder.a.family.gated:
        return Mlp(up, PLAIN[binder.a.activation], binder.linear(parts[name]))
    op, params = "silu_and_mul", {}
    if binder.a.activation not in ("silu", "swish"):
        op, params = "gelu_and_mul", {"approximate": "none" if binder.a.activation == "gelu" else "tanh"}
    down = binder.weights.load(parts[name])
    quantizing = binder.quantizing(op, {}, params, down)
    linear = binder.bind_linear(parts[name], down, quantized_input=quantizing is not None)
    return Mlp(up, quantizing or binder.share(op, params), linear)


def bind_moe(binder: LayerBinder, parts: dict[str, Part], moe: Moe, layer: int) -> MoeMlp:
    """Router and experts, and the experts that serve every token. layer: counted over the model."""
    own = bind_experts(binder, parts, moe)
    if parts["w13"].share is not None:
        binder.spread[layer] = spread_experts(binder, own, moe, layer)
    return MoeMlp(
        _router(binder, parts["router"]),
        _route(binder, parts, moe),
        binder.spread.get(layer, own),
        _shared_experts(binder, parts) if moe.shared_size else None,
    )


def _router(binder: LayerBinder, part: Part) -> Linear:
    if not part.float32:
        return binder.linear(part)
    weights = {"weight": binder.weights.weight(part), "bias": binder.weights.bias(part)}
    return Float32Linear(binder.plan.for_dtype(torch.float32).bind("linear", weights))


def _route(binder: LayerBinder, parts: dict[str, Part], moe: Moe) -> BoundKernel:
    facts = {"num_experts": moe.num_experts}
    if not moe.bias:
        return binder.share("moe_route", {"bias": None, **moe.rule}, facts)
    return binder.plan.bind("moe_route", {"bias": binder.weights.weight(parts["route_bias"])}, moe.rule, facts)


def _shared_experts(binder: LayerBinder, parts: dict[str, Part]) -> SharedExperts:
    mlp = bind_mlp(binder, parts, binder.linear(parts["shared_gate_up"]), "shared_down")
    return SharedExperts(mlp, binder.optional(parts, "shared_gate"))
