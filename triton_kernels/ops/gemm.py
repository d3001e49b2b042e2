"""``gemm_w4a16``, ``gemm_w8a16``, ``gemm_int8``, ``gemm_fp8``: GEMMs with quantized weights (and activations).

Every checkpoint format is brought into the canonical layouts described here; each impl packs its own layout from them. All take
``partial``, as ``op.PARTIAL`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cases.gemm import FP8_CASES, INT8_CASES, W4A16_CASES, W8A16_CASES
from ..op import PARTIAL, Cost, Op, rounded_once

FP8_BLOCK = 128


def gemm_w4a16_reference(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    perm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    partial: bool = False,
) -> torch.Tensor:
    """x [M, K] times 4-bit weights (q - zero) * scale -> [M, N] in x's dtype.

    qweight  int32 [N, K/8]: eight quantized values per word along K, the first in the lowest bits
    scales   [N, K/G] in a float dtype; the group size G = K / scales.shape[1] divides K
    zeros    uint8 [N, K/G], or None for symmetric weights, whose zero is 8
    perm     int32 [K] or None: column j of the weights belongs to x[:, perm[j]] (act-order sorted by group)
    bias     [N] or None
    """
    weight = dequantize(unpack_int4(qweight), scales, 8 if zeros is None else zeros)
    wide = x.double() if perm is None else x.double()[:, perm.long()]
    out = wide @ weight.T
    return rounded_once(out, bias, x.dtype, partial)


def gemm_w8a16_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    perm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    partial: bool = False,
) -> torch.Tensor:
    """x [M, K] times 8-bit weights (q - zero) * scale -> [M, N] in x's dtype. Quantized values are finite numbers.

    weight  int8, uint8 (2- and 3-bit quantized values too), float8_e4m3fn or float8_e5m2 [N, K]
    scales  [N, K/G]; G = K is one scale per output channel
    zeros   uint8 [N, K/G] or None (zero 0)
    perm    int32 [K] or None: column j of the weights belongs to x[:, perm[j]]
    """
    wide = x.double() if perm is None else x.double()[:, perm.long()]
    out = wide @ dequantize(weight, scales, 0 if zeros is None else zeros).T
    return rounded_once(out, bias, x.dtype, partial)


def gemm_int8_reference(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    partial: bool = False,
) -> torch.Tensor:
    """int8 x [M, K] times int8 weight [N, K] -> (x - x_zero) * x_scale @ (weight * scales)^T in out_dtype; the integer sum
    is exact.

    x_scale  f32 [M, 1], per token, or [1, 1]
    x_zero   int32 of x_scale's shape, or None
    scales   f32 [N, 1], per channel, or [1, 1]
    bias     [N] or None
    """
    wide = x.double() if x_zero is None else x.double() - x_zero.double()
    out = (wide @ weight.double().T) * x_scale.double() * scales.double().T
    return rounded_once(out, bias, out_dtype, partial)


def gemm_fp8_reference(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    partial: bool = False,
) -> torch.Tensor:
    """float8 x [M, K] times float8 weight [N, K] -> [M, N] in out_dtype.

    The shapes of the scales say how fine they are:
    per tensor            x_scale [1, 1], scales [1, 1]
    per token x channel   x_scale [M, 1], or [1, 1] for all; scales [N, 1]
    blocks of 128         x_scale [M, ceil(K/128)], scales [ceil(N/128), ceil(K/128)], where K > 128
    """
    out = spread(x, x_scale, 1) @ spread(weight, scales, FP8_BLOCK if scales.shape[1] > 1 else 1).T
    return rounded_once(out, bias, out_dtype, partial)


def unpack_int4(words: torch.Tensor) -> torch.Tensor:
    """int32 [..., K/8] -> uint8 quantized values [..., K], lowest bits first."""
    shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 15).flatten(-2).to(torch.uint8)


def pack_int4(quantized: torch.Tensor) -> torch.Tensor:
    """uint8 quantized values [..., K] -> int32 [..., K/8], the inverse of :func:`unpack_int4`."""
    shifts = torch.arange(0, 32, 4, device=quantized.device)
    return (quantized.long().unflatten(-1, (-1, 8)) << shifts).sum(-1).to(torch.int32)


def dequantize(quantized: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int) -> torch.Tensor:
    """float64 [N, K] = (q - zeros) * scales, with scales (and zeros) [N, K/G]."""
    group = quantized.shape[1] // scales.shape[1]
    shift = zeros.double().repeat_interleave(group, 1) if isinstance(zeros, torch.Tensor) else zeros
    return (quantized.double() - shift) * scales.double().repeat_interleave(group, 1)


def spread(values: torch.Tensor, scales: torch.Tensor, row_block: int) -> torch.Tensor:
    """float64 [R, K] = values times scales [1 | R | ceil(R/row_block), 1 | ceil(K/128)] laid over them."""
    wide = scales.double()
    if wide.shape[1] > 1:
        wide = wide.repeat_interleave(FP8_BLOCK, 1)[:, : values.shape[1]]
    if row_block > 1:
        wide = wide.repeat_interleave(row_block, 0)[: values.shape[0]]
    return values.double() * wide


def gemm_w4a16_fake(x, qweight, scales, zeros=None, perm=None, bias=None, partial=False):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], qweight.shape[0], dtype=torch.float32 if partial else x.dtype)


def gemm_w8a16_fake(x, weight, scales, zeros=None, perm=None, bias=None, partial=False):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32 if partial else x.dtype)


def gemm_int8_fake(x, x_scale, x_zero, weight, scales, bias=None, out_dtype=torch.bfloat16, partial=False):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32 if partial else out_dtype)


def gemm_fp8_fake(x, x_scale, weight, scales, bias=None, out_dtype=torch.bfloat16, partial=False):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32 if partial else out_dtype)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: in_features, out_features, weight_bits, group_size (0 = per channel), scale_bytes, act_bytes, out_bytes."""
    tokens, k, n = sum(q_lens), dims["in_features"], dims["out_features"]
    groups = k / dims["group_size"] if dims.get("group_size") else 1
    weights = n * k * dims.get("weight_bits", 8) / 8 + n * groups * dims.get("scale_bytes", 2)
    return Cost(2 * tokens * k * n, weights + tokens * (k * dims.get("act_bytes", 2) + n * dims.get("out_bytes", 2)))


def _group_facts(bound: Mapping[str, Any], quantized: str, per_word: int) -> dict[str, Any]:
    n, words = bound[quantized].shape
    k = words * per_word
    return {
        "in_features": k,
        "out_features": n,
        "group_size": k // bound["scales"].shape[1],
        "weight_dtype": bound[quantized].dtype,
        "symmetric": bound.get("zeros") is None,
        "act_order": bound.get("perm") is not None,
    }


def gemm_w4a16_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return _group_facts(bound, "qweight", 8)


def gemm_w8a16_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return _group_facts(bound, "weight", 1)


def scaled_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    n, k = bound["weight"].shape
    rows, columns = bound["scales"].shape
    recipe = "block" if columns > 1 else "channel" if rows > 1 else "tensor"
    kinds = {"weight_dtype": bound["weight"].dtype, "out_dtype": bound["out_dtype"]}
    return {"in_features": k, "out_features": n, "recipe": recipe} | kinds


gemm_w4a16 = Op(
    "gemm_w4a16",
    gemm_w4a16_reference,
    gemm_w4a16_fake,
    cost,
    cases=W4A16_CASES,
    bind_args=("qweight", "scales", "zeros", "perm", "bias", PARTIAL),
    optional=(PARTIAL,),
    row_args=("x",),
    facts=gemm_w4a16_facts,
)
gemm_w8a16 = Op(
    "gemm_w8a16",
    gemm_w8a16_reference,
    gemm_w8a16_fake,
    cost,
    cases=W8A16_CASES,
    bind_args=("weight", "scales", "zeros", "perm", "bias", PARTIAL),
    optional=(PARTIAL,),
    row_args=("x",),
    facts=gemm_w8a16_facts,
)
gemm_int8 = Op(
    "gemm_int8",
    gemm_int8_reference,
    gemm_int8_fake,
    cost,
    cases=INT8_CASES,
    bind_args=("weight", "scales", "bias", "out_dtype", PARTIAL),
    optional=(PARTIAL,),
    row_args=("x", "x_scale", "x_zero"),
    facts=scaled_facts,
)
gemm_fp8 = Op(
    "gemm_fp8",
    gemm_fp8_reference,
    gemm_fp8_fake,
    cost,
    cases=FP8_CASES,
    bind_args=("weight", "scales", "bias", "out_dtype", PARTIAL),
    optional=(PARTIAL,),
    row_args=("x", "x_scale"),
    facts=scaled_facts,
)
