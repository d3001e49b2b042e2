"""A plugin file with one deliberately wrong impl per op, all named "wrong"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from triton_kernels.impl import impl
from triton_kernels.op import Op
from triton_kernels.ops import OPS


def spoil(value: Any) -> Any:
    """Neighbouring elements change places; token ids move on by one."""
    if isinstance(value, tuple):
        return tuple(spoil(part) for part in value)
    if value.is_floating_point():
        return torch.roll(value, 1, dims=-1) - 0.5
    return (value + 1) % 50 if value.dim() == 1 else torch.roll(value, 1, dims=-1)


def wrong(op: Op) -> Callable[..., Any]:
    """The reference with spoiled outputs; an op that only writes in place does nothing at all."""
    both = ("rms_norm", "layer_norm", "qk_norm_rotary_kv_write", "causal_conv1d", "selective_scan", "ssd_scan", "gated_delta_rule")

    @functools.wraps(op.reference)
    def run(*args: Any, **bound: Any) -> Any:
        call = dict(zip(op.call_args, args))
        if op.mutates and op.name not in both:
            return None
        found = op.reference(**call, **bound)
        if op.name == "verify_draft":  # more accepted drafts than there were would stop the engine
            return spoil(found[0]), found[1]
        return spoil(found)

    run.__module__ = __name__
    return run


for _op in OPS.values():
    globals()[f"wrong_{_op.name}"] = impl(_op.name, "wrong")(wrong(_op))
