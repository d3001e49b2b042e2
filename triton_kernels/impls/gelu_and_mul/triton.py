"""gelu(gate) * up, exact or with the tanh approximation, and its quantized values: the kernel of ``gated``, where the exact gelu
takes erf and the approximation takes a sigmoid, both in f32 registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.gated import Gated


@impl("gelu_and_mul", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 0})
class GeluAndMulTriton(Gated):
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int) -> None:
        super().__init__(spec, weights, params, block, "gelu_tanh" if params.get("approximate", "tanh") == "tanh" else "gelu")
