"""``linear`` on a CPU with weights packed once into oneDNN's blocked layout.

``F.linear`` packs, or reads a layout that suits the GEMM badly, on every call, and sends float32
through MKL. The packed weight is the only copy that the bound layer keeps. The operators are private to torch, so
their absence is a reason in ``unsupported``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec


@impl("linear", "onednn", priority=20, flags=Flags(cpu_graph=True), devices=("cpu",), options={"batch_hint": 32})
class LinearOnednn:
    """``batch_hint``: the number of rows that the packed layout is chosen for; any number of rows is legal."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], batch_hint: int) -> None:
        weight = weights["weight"].detach()
        self.out_features = weight.shape[0]
        self.bias = weights.get("bias")
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch_hint)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if not torch.backends.mkldnn.is_available():
            reasons.append("this build of torch has no oneDNN")
        elif not (hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
            reasons.append(f"torch {torch.__version__} has no packed linear operator")
        if spec.dtype not in (torch.float32, torch.bfloat16):
            reasons.append(f"takes float32 and bfloat16, not {spec.dtype}")
        if spec.fact("weight_dtype", spec.dtype) != spec.dtype:
            reasons.append(f"needs weights of the activations' dtype {spec.dtype}, not {spec.fact('weight_dtype')}")
        return reasons

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, self.out_features)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
