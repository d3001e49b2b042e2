"""``rotary`` on a CPU in C, queries and keys in one call; see ``native_step.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_code import library, library_reasons

_TYPES = [*[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 9]


@impl("rotary", "native", priority=20, flags=Flags(batch_invariant=True), devices=("cpu",))
class RotaryNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.cos_sin = weights["cos_sin"].contiguous()
        self.half, self.gptj = self.cos_sin.shape[1] // 2, int(params.get("style", "neox") == "gptj")
        self.run = library("native_step.c", spec.dtype).rotary
        self.run.argtypes, self.run.restype = _TYPES, None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> None:
        (num_tokens, num_heads, _), (q_token, q_head, _), (k_token, k_head, _) = q.shape, q.stride(), k.stride()
        self.run(
            q.data_ptr(),
            k.data_ptr(),
            positions.data_ptr(),
            self.cos_sin.data_ptr(),
            num_tokens,
            num_heads,
            k.shape[1],
            q_token,
            q_head,
            k_token,
            k_head,
            self.half,
            self.gptj,
        )
