"""silu(gate) * up, and its quantized values: the kernel of ``gated``, where silu is gate * sigmoid(gate) in f32 registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.gated import Gated


@impl(
    "silu_and_mul",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block": 0},
    tune_space={"block": (512, 1024, 2048, 4096)},
)
class SiluAndMulTriton(Gated):
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int) -> None:
        super().__init__(spec, weights, params, block, "silu")
