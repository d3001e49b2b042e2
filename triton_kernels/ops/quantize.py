"""``quantize_activation``: activations to int8 or float8, with the scales that the quantized GEMMs take; and what ops
share that can quantize their own output (``rms_norm``, ``silu_and_mul``, ``gelu_and_mul``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..cases.gemm import QUANTIZE_CASES
from ..op import Cost, Op, Tolerance

GROUP = 128
OUTPUT_ARGS = ("out_dtype", "granularity", "static_scale")
"""Bound arguments by which an op quantizes its own output: as those of ``quantize_activation``; out_dtype None: it does not."""

Granularity = Literal["token", "group"]


def reference(
    x: torch.Tensor,
    out_dtype: torch.dtype = torch.float8_e4m3fn,
    granularity: Granularity = "token",
    static_scale: torch.Tensor | None = None,
    static_zero: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> quantized values [M, K] in out_dtype (int8, float8_e4m3fn or float8_e5m2), scales f32 [M, 1] (token),
    [M, ceil(K/128)] (group) or [1, 1] (a copy of the static scale f32 [1, 1], whatever the granularity). More leading
    dimensions than M are kept, in quantized values and scales.

    scale = max|x| / largest quantized value (127, 448, 57344), at least 1e-10, computed in f32. q = x / scale (f32 division),
    rounded to nearest even and saturated: of float8 to the largest value, of int8 to -128 and 127. For finite x.

    static_zero  int32 [1, 1] or None, of int8 with a static scale: the quantized value of 0, added after rounding
    """
    values = x.float()
    limit = largest_value(out_dtype)  # divided by as a tensor: a GPU multiplies by the reciprocal of a plain number
    if static_scale is not None:
        scales = static_scale.clone()
        wide = scales
    elif granularity == "token":
        scales = (values.abs().amax(-1, keepdim=True) / values.new_tensor(limit)).clamp_min(1e-10)
        wide = scales
    else:
        padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        scales = (padded.abs().amax(-1) / values.new_tensor(limit)).clamp_min(1e-10)
        wide = scales.repeat_interleave(GROUP, -1)[..., : x.shape[-1]]
    quantized = values / wide
    if out_dtype == torch.int8:
        return (quantized.round() + (0 if static_zero is None else static_zero)).clamp(-128, 127).to(out_dtype), scales
    return quantized.clamp(-limit, limit).to(out_dtype), scales


def largest_value(dtype: torch.dtype) -> float:
    """The largest finite value."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def fake(x, out_dtype=torch.float8_e4m3fn, granularity="token", static_scale=None, static_zero=None):  # type: ignore[no-untyped-def]
    return fake_output(x, x.shape, out_dtype, granularity, static_scale)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size, act_bytes."""
    elements = sum(q_lens) * dims["hidden_size"]
    return Cost(3 * elements, elements * (dims.get("act_bytes", 2) + 1))


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"out_dtype": bound["out_dtype"], "granularity": bound["granularity"], "static": bound.get("static_scale") is not None}


def output(
    values: torch.Tensor,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    granularity: Granularity,
    static_scale: torch.Tensor | None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What an op returns whose exact result is ``values`` f64 [..., K]: rounded to ``dtype``, or, quantized, quantized values and
    scales of the values in f32, which no other rounding has touched."""
    return values.to(dtype) if out_dtype is None else reference(values, out_dtype, granularity, static_scale)


def fake_output(x, shape, out_dtype=None, granularity="token", static_scale=None):  # type: ignore[no-untyped-def]
    if out_dtype is None:
        return x.new_empty(shape)
    by_row = (*shape[:-1], 1 if granularity == "token" else -(-shape[-1] // GROUP))
    scales = x.new_empty((1, 1) if static_scale is not None else by_row, dtype=torch.float32)
    return x.new_empty(shape, dtype=out_dtype), scales


def output_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    """out_dtype (None: not quantized) and, for quantized values, granularity and static."""
    return {"out_dtype": None} if bound.get("out_dtype") is None else facts({"granularity": "token", **bound})


def output_bytes(dims: Mapping[str, float], num_rows: float, width: float) -> float:
    """Bytes of ``num_rows`` outputs. dims: act_bytes; quantized: out_bytes, and num_scales per row."""
    return num_rows * (width * dims.get("out_bytes", dims.get("act_bytes", 2)) + 4 * dims.get("num_scales", 0))


def output_numbers(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Quantized values as the numbers that they stand for, beside their scales; an output that is not quantized as it is."""
    if len(outputs) == 1:
        return outputs
    quantized, scales = outputs
    wide = scales.repeat_interleave(GROUP, -1)[..., : quantized.shape[-1]] if scales.shape[-1] > 1 else scales
    return [quantized.double() * wide, scales]


quantize_activation = Op(
    "quantize_activation",
    reference,
    fake,
    cost,
    cases=QUANTIZE_CASES,
    bind_args=(*OUTPUT_ARGS, "static_zero"),
    optional=("static_zero",),
    row_args=("x",),
    facts=facts,
    tolerance=Tolerance(exact=True),
)
