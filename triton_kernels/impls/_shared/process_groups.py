"""The collectives as a library of torch.distributed does them (``backend`` names it), on groups of processes. The order of a sum is
the library's, and changes with the size of the message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...group import ProcessGroup
from ...spec import Spec
from .rank_sums import backend_reasons, rounded, wide

# Their names before torch 2.13, which warns of them.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Collective:
    """``params``: the op's bound arguments."""

    backend = ""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        group = params["group"]
        assert isinstance(group, ProcessGroup), group
        self.size, self.handle = group.size, group.handle
        self.bias, self.out_dtype = weights.get("bias"), params.get("out_dtype")
        self.dim: int = params.get("dim", 0)

    @classmethod
    def unsupported(cls, spec: Spec) -> list[str]:
        return backend_reasons(spec, cls.backend)


class AllReduce(_Collective):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        total = wide(x).clone(memory_format=torch.contiguous_format)
        if total.numel():
            dist.all_reduce(total, group=self.handle)
        return rounded(total, self.bias, self.out_dtype or x.dtype)


class ReduceScatter(_Collective):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        parts = wide(x).contiguous()
        own = parts.new_empty(x.shape[0] // self.size, x.shape[1])
        if own.numel():
            _reduce_scatter(own, parts, group=self.handle)
        return own.to(self.out_dtype or x.dtype)


class AllGather(_Collective):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape
        out = x.new_empty(self.size, rows, columns)
        if out.numel():
            _all_gather(out.view(-1), x.reshape(-1), group=self.handle)
        return out.view(-1, columns) if self.dim == 0 else out.transpose(0, 1).reshape(rows, self.size * columns)


class AllToAll(_Collective):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape)
        if out.numel():
            dist.all_to_all_single(out, x.contiguous(), group=self.handle)
        return out
