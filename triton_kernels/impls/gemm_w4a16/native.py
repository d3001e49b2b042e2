"""``gemm_w4a16`` on a CPU in C, with weights packed once; see ``native_quantized.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...ops.gemm import unpack_int4
from ...spec import Spec
from .._shared.native_code import library_reasons
from .._shared.native_quantized import EXACT, SOURCE, NativeWeights


@impl("gemm_w4a16", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class W4A16Native(NativeWeights):
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        super().__init__(spec, weights, unpack_int4(weights["qweight"].detach()), 4, 8)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons(SOURCE, spec.dtype, EXACT)
