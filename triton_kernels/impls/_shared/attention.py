"""What the attention impls share on the host: the bound arguments, and what a kernel is compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton

from ...attention_meta import LayerKV
from ...spec import Spec
from .quantized_values import LIMITS


class Constants(NamedTuple):
    """What an attention kernel is compiled for; one compile-time argument, ``C`` in kernels.

    WIDEN       multiply in float32: Triton's interpreter calculates with the bit patterns of bfloat16
    PTX         convert quantized values by instructions of NVIDIA's, before they pass through shared memory
    GROUP       query heads that share a KV head
    DK, DV      head sizes of keys and values; BLOCK_DK and BLOCK_DV are the powers of two above them
    BLOCK_M     rows of a matrix product; a program has ROW_BLOCKS times as many
    BLOCK_N     keys per tile
    STRIDES     of the cache, in elements: page, slot and head of k, then of v, k_scale and v_scale (0 where there is none)
    TMA         k and v of the cache are tensor descriptors
    """

    CAUSAL: bool
    HAS_WINDOW: bool
    HAS_SOFTCAP: bool
    WIDEN: bool
    PTX: bool
    NUM_KV_HEADS: int
    GROUP: int
    DK: int
    DV: int
    BLOCK_DK: int
    BLOCK_DV: int
    BLOCK_M: int
    ROW_BLOCKS: int
    BLOCK_N: int
    PAGE_SIZE: int
    STRIDES: tuple[int, ...]
    TMA: bool


@dataclass(frozen=True)
class AttentionParams:
    """The bound arguments of the op, in the form that kernels take."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    alibi: torch.Tensor | None
    return_lse: bool
    widen: bool  # see Constants
    nvidia_16_bits: bool

    @classmethod
    def of(cls, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> AttentionParams:
        given = {**params, **weights}
        if not given["scale"] > 0:
            raise ValueError(f"attention needs a positive scale, got {given['scale']}")
        return cls(
            given["scale"],
            given.get("causal", True),
            given.get("window"),
            given.get("softcap"),
            given.get("sinks"),
            given.get("alibi"),
            given.get("return_lse", False),
            spec.interpret and spec.dtype == torch.bfloat16,
            spec.arch.startswith("sm_") and not spec.interpret and spec.dtype != torch.float32,
        )

    def kernel_args(self) -> dict[str, Any]:
        """Keyword arguments that all attention kernels have in common."""
        return {
            "sinks": self.sinks,
            "alibi": self.alibi,
            "scale": self.scale,
            "softcap": self.softcap or 0.0,
            "window": self.window or 0,
            "enable_fp_fusion": True,
        }

    def constants(
        self, q: torch.Tensor, kv: LayerKV, block_m: int, block_n: int, row_blocks: int = 1, tma: bool = False
    ) -> Constants:
        """For q [T, Hq, Dk] over a cache."""
        dk, (num_kv_heads, dv) = q.shape[2], kv.v.shape[2:]
        return Constants(
            CAUSAL=self.causal,
            HAS_WINDOW=self.window is not None,
            HAS_SOFTCAP=self.softcap is not None,
            WIDEN=self.widen,
            PTX=self.nvidia_16_bits and kv.k_scale is not None,
            NUM_KV_HEADS=num_kv_heads,
            GROUP=q.shape[1] // num_kv_heads,
            DK=dk,
            DV=dv,
            BLOCK_DK=max(16, triton.next_power_of_2(dk)),
            BLOCK_DV=max(16, triton.next_power_of_2(dv)),
            BLOCK_M=block_m,
            ROW_BLOCKS=row_blocks,
            BLOCK_N=block_n,
            PAGE_SIZE=kv.page_size,
            STRIDES=tuple(0 if tensor is None else tensor.stride(i) for tensor in kv for i in range(3)),
            TMA=tma,
        )


def unsupported_attention(spec: Spec) -> list[str]:
    """Reasons that hold for every Triton attention kernel."""
    reasons = []
    for name in ("head_dim", "value_dim"):
        if spec.fact(name, 0) > 256:
            reasons.append(f"{name} {spec.fact(name)} is above 256")
    page_size = spec.fact("page_size", 16)
    if page_size & (page_size - 1):
        reasons.append(f"page_size {page_size} is not a power of two")
    kv_dtype = spec.fact("kv_dtype", spec.dtype)
    if kv_dtype != spec.dtype and kv_dtype not in LIMITS:
        reasons.append(f"reads a cache of the activations' dtype or int8 or fp8, not {kv_dtype}")
    ampere = spec.arch.startswith("sm_") and int(spec.arch[3:]) < 89
    if kv_dtype == torch.float8_e4m3fn and (ampere or spec.arch == "gfx942"):
        reasons.append(f"Triton cannot convert float8_e4m3fn on {spec.arch}")
    return reasons
