"""What the attention impls share on the host: the bound arguments, and what a kernel is compiled for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
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
    REST        elements of a key behind DK, multiplied on their own: 512 and 64 are not padded to 1024. 0: DK are all
    SHARED      the values are the first DV = DK elements of the keys: a tile is read once for both products
    BLOCK_M     rows of a matrix product; a program has ROW_BLOCKS times as many
    BLOCK_N     keys per tile
    STRIDES     of the cache, in elements: page, slot and head of k, then of v, k_scale and v_scale (0 where there is none)
    TMA         k and v of the cache are tensor descriptors
    ALIBI_SCALE of ALiBi that is rounded to bfloat16; 0: it is not
    DISTANCES   columns of the table of position biases, which kernels take in place of ALiBi's slopes; 0: there is none
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
    REST: int
    BLOCK_DK: int
    BLOCK_DV: int
    BLOCK_REST: int
    SHARED: bool
    BLOCK_M: int
    ROW_BLOCKS: int
    BLOCK_N: int
    PAGE_SIZE: int
    STRIDES: tuple[int, ...]
    TMA: bool
    ALIBI_SCALE: float
    DISTANCES: int


@dataclass(frozen=True)
class AttentionParams:
    """The bound arguments of the op, in the form that kernels take."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    alibi: torch.Tensor | None
    position_bias: torch.Tensor | None
    return_lse: bool
    shared: bool  # see Constants
    widen: bool
    nvidia_16_bits: bool
    alibi_scale: float

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
            None if given.get("position_bias") is None else given["position_bias"].contiguous(),
            given.get("return_lse", False),
            shares_tiles(spec),
            spec.interpret and spec.dtype == torch.bfloat16,
            spec.arch.startswith("sm_") and not spec.interpret and spec.dtype != torch.float32,
            given.get("alibi_scale") or 0.0,
        )

    def kernel_args(self) -> dict[str, Any]:
        """What all attention kernels have in common of what their launches fix."""
        return {
            "sinks": self.sinks,
            "bias": self.alibi if self.position_bias is None else self.position_bias,
            "scale": self.scale,
            "softcap": self.softcap or 0.0,
            "window": self.window or 0,
            "enable_fp_fusion": True,
        }

    @staticmethod
    def shapes(q: torch.Tensor, kv: LayerKV) -> tuple[Hashable, ...]:
        """Of q and a cache, all that ``constants`` and tensor descriptors follow from: equal for the calls of a layer."""
        k, v, k_scale, v_scale = kv
        if k_scale is None or v_scale is None:
            return q.shape[1:], k.shape, v.shape, k.stride(), v.stride()
        return q.shape[1:], k.shape, v.shape, k.stride(), v.stride(), k_scale.stride(), v_scale.stride()

    def constants(
        self, q: torch.Tensor, kv: LayerKV, block_m: int, block_n: int, row_blocks: int = 1, tma: bool = False
    ) -> Constants:
        """For q [T, Hq, Dk] over a cache."""
        dk, (num_kv_heads, dv) = q.shape[2], kv.v.shape[2:]
        assert not self.shared or kv.is_aliased, "the layer was bound for values that lie in its keys"
        rest = dk - dv if self.shared else 0
        dk -= rest
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
            REST=rest,
            BLOCK_DK=max(16, triton.next_power_of_2(dk)),
            BLOCK_DV=max(16, triton.next_power_of_2(dv)),
            BLOCK_REST=max(16, triton.next_power_of_2(rest)) if rest else 0,
            SHARED=self.shared,
            BLOCK_M=block_m,
            ROW_BLOCKS=row_blocks,
            BLOCK_N=block_n,
            PAGE_SIZE=kv.page_size,
            STRIDES=tuple(0 if tensor is None else tensor.stride(i) for tensor in kv for i in range(3)),
            TMA=tma,
            ALIBI_SCALE=self.alibi_scale,
            DISTANCES=0 if self.position_bias is None else self.position_bias.shape[1],
        )


def shares_tiles(spec: Spec) -> bool:
    """Whether a tile of keys serves as the tile of values: those lie in the keys, and fill a power of two."""
    value_dim = spec.fact("value_dim", 0)
    return spec.fact("aliased", False) and value_dim >= 16 and value_dim & (value_dim - 1) == 0


def unsupported_attention(spec: Spec) -> list[str]:
    """Reasons that hold for every Triton attention kernel."""
    reasons = []
    shared = shares_tiles(spec)
    widths = {"head_dim": 256, "value_dim": 512 if shared else 256}
    if shared:
        widths["head_dim"] = spec.fact("value_dim") + 128
    for name, widest in widths.items():
        if spec.fact(name, 0) > widest:
            reasons.append(f"{name} {spec.fact(name)} is above {widest}")
    if spec.fact("head_dim", 0) > 256 and spec.dtype == torch.float32 and not spec.interpret:
        reasons.append("keys above 256 need activations of 16 bits, whose products take matrix instructions")
    page_size = spec.fact("page_size", 16)
    if page_size & (page_size - 1):
        reasons.append(f"page_size {page_size} is not a power of two")
    kv_dtype = spec.fact("kv_dtype", spec.dtype)
    if kv_dtype != spec.dtype and kv_dtype not in LIMITS:
        reasons.append(f"reads a cache of the activations' dtype or int8 or fp8, not {kv_dtype}")
    ampere = spec.arch.startswith("sm_") and int(spec.arch[3:]) < 89
    if kv_dtype == torch.float8_e4m3fn and (ampere or spec.arch == "gfx942"):
        reasons.append(f"Triton cannot convert float8_e4m3fn on {spec.arch}")
    if spec.fact("aliased", False) and kv_dtype in LIMITS:
        reasons.append(f"reads values that lie in the keys of a cache of the activations' dtype, not of {kv_dtype}")
    return reasons
