"""``gemm_w4a16`` on a CPU in C, with weights packed once; see ``native_quantized.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...ops.gemm import pack_int4, unpack_int4
from ...spec import Spec
from .._shared.native_code import library_reasons
from .._shared.native_quantized import EXACT, SOURCE, NativeWeights


@impl("gemm_w4a16", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class W4A16Native(NativeWeights):
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        words, shape = weights["qweight"].detach(), weights["scales"].shape
        group = words.shape[1] * 8 // shape[1]
        if group % 8:  # it ends within a word
            values = unpack_int4(words).reshape(*shape, group)
            words = pack_int4(torch.nn.functional.pad(values, (0, -group % 8)))
        super().__init__(spec, weights, words.reshape(*shape, -1), group, 4, 8)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons(SOURCE, spec.dtype, EXACT)
