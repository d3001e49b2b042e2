"""``silu_and_mul`` by FlashInfer (package ``flashinfer``, 0.6): silu_and_mul.

The library reads 16 bytes at once: halves of x that are no multiple of that are padded first, and strided rows are copied. It
has no float32 and does not quantize its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from ...spec import Spec
from .._shared.flashinfer import FlashInferGated


@impl("silu_and_mul", "flashinfer", priority=15, requires=("flashinfer",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class FlashInferSiluAndMul(FlashInferGated):
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import flashinfer

        self.activate = flashinfer.silu_and_mul
