"""The kernel plan of a device that is not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..config import EngineConfig
from ..plan import KernelPlan


class TargetPlan(KernelPlan):
    """The plan of an engine on a device that need not be here. Triton kernels are bound as they would be there, for a context of
    ``compile_only``; in place of all others the op's shapes are computed."""

    @classmethod
    def of(cls, config: EngineConfig, target: str, dtype: torch.dtype) -> TargetPlan:
        plan = cls(config.kernels, config.plugins, torch.device("cpu"), dtype, tuned=config.tuned)
        plan.spec = replace(plan.spec, device="cuda", arch=target)
        return plan

    def _bind(self, impl: Any, spec: Any, weights: dict[str, Any], params: dict[str, Any], options: Mapping[str, Any]) -> Any:
        if impl.is_triton:
            return super()._bind(impl, spec, weights, params, options)
        op = self.registry.ops[impl.op]
        return lambda *args: op.fake(**weights, **params, **dict(zip(op.call_args, args)))
