"""Layers that keep states, bound."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...plan import BoundKernel
from ..layers.mixers import AnyMixer, GatedDeltaMixer, LayerStates, Mamba1Mixer, Mamba2Mixer
from ..mixers import Mamba1, Mamba2, Mixer
from ..parts import Part
from .layer import LayerBinder


def bind_mixer(binder: LayerBinder, parts: dict[str, Part], mixer: Mixer, index: int) -> tuple[AnyMixer, BoundKernel | None]:
    """The mixer of layer ``index`` of this process, and the norm before it."""
    plan, states = binder.plan, LayerStates(index, mixer.state(binder.info.dtype))
    norm: BoundKernel | None
    if "gates_proj" in parts:  # which reads the norm's output, too
        in_proj, norm = binder.linear(parts["in_proj"]), binder.norm(parts["attn_norm"])
    else:
        in_proj, norm = binder.linear_after_norm(parts, "attn_norm", "in_proj")
    conv = plan.bind("causal_conv1d", _weights(binder, parts["conv"]), {"activation": "silu"})
    constants = {name: binder.weights.weight(parts[name]) for name in mixer.constants()}
    out_proj = binder.linear(parts["out_proj"])
    if isinstance(mixer, Mamba1):
        norms = tuple(
            plan.bind(*binder.norm_call(*binder.norm_tensors(parts[name]), mixer.norm_eps)) for name in mixer.norm_sizes()
        )
        x_proj = binder.linear(parts["x_proj"])
        # Where its weight is quantized, its bias comes with it; here it is the recurrence's.
        unbiased = [replace(part, tensors={**part.tensors, "bias": None}) for part in binder.weights.load(parts["dt_proj"])]
        dt_proj = binder.bind_linear(parts["dt_proj"], unbiased)
        scan = plan.bind("selective_scan", constants)
        return Mamba1Mixer(mixer, states, in_proj, conv, x_proj, norms, dt_proj, scan, out_proj), norm
    group = mixer.num_channels // mixer.num_groups if isinstance(mixer, Mamba2) else None
    gated = {"eps": binder.a.norm_eps, "group_size": group, "norm_first": group is None}
    gated_norm = plan.bind("gated_rms_norm", {"weight": binder.weights.weight(parts["gated_norm"])}, gated)
    if isinstance(mixer, Mamba2):
        least, most = mixer.step_limit
        scan = plan.bind("ssd_scan", constants, {"dt_min": least, "dt_max": most})
        return Mamba2Mixer(mixer, states, in_proj, conv, scan, gated_norm, out_proj), norm
    rule = plan.bind("gated_delta_rule", constants, {"scale": mixer.k_dim**-0.5})
    gates_proj = binder.linear(parts["gates_proj"])
    return GatedDeltaMixer(mixer, states, in_proj, gates_proj, conv, rule, gated_norm, out_proj), norm


def _weights(binder: LayerBinder, part: Part) -> dict[str, torch.Tensor | None]:
    return {"weight": binder.weights.weight(part), "bias": binder.weights.bias(part)}
