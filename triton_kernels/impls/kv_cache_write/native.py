"""``kv_cache_write`` on a CPU in C: copies head by head; see ``native_step.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...attention_meta import LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons


@impl("kv_cache_write", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class KvCacheWriteNative:
    takes = ("k_scale", "v_scale")

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.run = NativeKernel("native_step.c", spec.dtype, "kv_cache_write", "pp pp p iiiiiiiii iiiiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        if spec.fact("kv_dtype", spec.dtype) != spec.dtype:
            return [f"writes a cache of {spec.dtype}, not of {spec.fact('kv_dtype')}"]
        return library_reasons("native_step.c", spec.dtype)

    def __call__(self, k: torch.Tensor, v: torch.Tensor | None, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
        v = k[..., :0] if v is None else v
        self.run(
            k.numel(),
            *(k, v, kv.k, kv.v, slot_mapping),
            *(k.shape[0], k.shape[1], kv.page_size, k.shape[2], v.shape[2], *k.stride()[:2], *v.stride()[:2]),
            *(*kv.k.stride()[:3], *kv.v.stride()[:3]),
        )
