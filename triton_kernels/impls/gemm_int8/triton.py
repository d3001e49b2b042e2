"""int8 activations times int8 weights: the scaled product (``_scaled_product`` has its algorithm).

Sums are exact integers whatever the tile and the number of splits, and scales are applied by the same operations in the same
order, so a token's result does not depend on the batch. Zero points of activations are taken off with the column sums of the
weights, which are added up once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._scaled_product import ScaledProduct


@impl("gemm_int8", "triton", priority=30, requires=("triton",), flags=Flags(batch_invariant=True),
      options={"block_m": 0, "block_n": 0, "split_k": 0})  # fmt: skip
class TritonInt8(ScaledProduct):
    """Options set to 0 follow ``launch_config``."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        super().__init__(spec, weights, params)
        self.fixed = {name: value for name, value in options.items() if value}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        recipe = spec.fact("recipe", "channel")
        return ["scales channels, not blocks"] if recipe == "block" else []

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor, x_zero: torch.Tensor | None) -> torch.Tensor:
        return self.multiply(x, x_scale, x_zero, self.config(x.shape[0])._replace(**self.fixed))
