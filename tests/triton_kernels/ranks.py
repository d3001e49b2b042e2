"""What each of several ranks computes, by a layer that is bound with its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from triton_kernels.group import Group
from triton_kernels.lab.calls import bind, make_spec
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

REGISTRY = Registry.load()
IMPLS = {op: REGISTRY.impls(op) for op in OPS}  # loaded before there are threads


def call_as(
    op: str,
    impl: str,
    group: Group,
    tensors: Sequence[torch.Tensor],
    bound: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    interpret: bool = False,
) -> torch.Tensor:
    """One call of an impl that is bound with a group. ``tensors``: the call's; ``bound``: by name."""
    found, args = OPS[op], {**bound, "group": group}
    dtype = bound.get("out_dtype") or tensors[-1].dtype
    spec = make_spec(found, args, dtype, torch.device("cpu"), interpret)
    reasons = IMPLS[op][impl].unsupported(spec, options)
    assert not reasons, reasons
    result: torch.Tensor = bind(found, IMPLS[op][impl], spec, {**_unset(op), **args}, options)(*tensors)
    return result


def _unset(op: str) -> dict[str, Any]:
    """Bound arguments that a test leaves out."""
    return {name: None for name in ("bias", "out_dtype") if name in OPS[op].bind_args} | (
        {"dim": 0} if op == "all_gather" else {"offset": 0.0} if op == "all_reduce_add_rms_norm" else {}
    )


def partials(size: int, rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """One tensor for each rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, columns, generator=generator).to(dtype) for _ in range(size)]
