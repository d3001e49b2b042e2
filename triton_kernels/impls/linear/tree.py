"""``linear`` whose bits do not depend on how many ranks share K, nor on the other rows, nor on the device (Tree-based invariant
kernels, arXiv 2511.17826).

K is halved until a half would have fewer than ``width`` columns, or is no integer. Columns of such a segment are multiplied and
added one after another, segments in pairs of neighbours, these sums in pairs, and so on: each of 2, 4, 8, ... ranks that share K
ends with a sum that is one of this tree, and ``all_reduce:ordered`` (and those that promise ``rank_invariant`` too) adds the rest
of it. Every step is one multiplication or addition of float32 numbers, elementwise, which rounds the same way everywhere; it takes
the work of an outer product. For studies of what the number of ranks changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.rank_sums import rounded

_ELEMENTS = 1 << 22
"""Products held at a time."""


@impl("linear", "tree", priority=2, flags=Flags(batch_invariant=True, rank_invariant=True), options={"width": 4})
class TreeLinear:
    """``width``: of K a rank must have as many columns at least."""

    takes = ("partial",)

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], width: int) -> None:
        weight, self.bias, self.partial = weights["weight"], weights.get("bias"), params.get("partial", False)
        self.num_out, num_in = weight.shape
        self.num_segments, self.num_in = 1, num_in
        while num_in % (2 * self.num_segments) == 0 and num_in // (2 * self.num_segments) >= width:
            self.num_segments *= 2
        self.columns = self._columns(weight)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        width, num_in = spec.fact("options", {"width": 1})["width"], spec.fact("in_features", 0)
        if "partial" not in str(spec.fact("given", "")).split() or num_in >= width:
            return []
        return [f"needs {width} columns on each rank, here are {num_in}: lower the width"]

    def _columns(self, x: torch.Tensor) -> torch.Tensor:
        """[width of a segment, rows, num_segments] in float32."""
        return x.float().reshape(x.shape[0], self.num_segments, self.num_in // self.num_segments).permute(2, 0, 1).contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = max(1, _ELEMENTS // (self.num_out * self.num_segments))
        out = torch.cat([self._multiply(part) for part in x.split(rows)])
        return out if self.partial else rounded(out, self.bias, x.dtype)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(x.shape[0], self.num_out, self.num_segments, dtype=torch.float32)
        for left, right in zip(self._columns(x)[:, :, None], self.columns):
            total += left * right
        while total.shape[-1] > 1:
            total = total[..., ::2] + total[..., 1::2]
        return total[..., 0]
