"""``quantize_activation``: activations to int8 or float8, with the scales that the quantized products take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..cases.quantized import QUANTIZE_CASES
from ..op import Cost, Op, Tolerance

GROUP = 128


def reference(
    x: torch.Tensor,
    out_dtype: torch.dtype = torch.float8_e4m3fn,
    granularity: Literal["token", "group"] = "token",
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> codes [M, K] in out_dtype (int8, float8_e4m3fn or float8_e5m2), scales f32 [M, 1] (token),
    [M, ceil(K/128)] (group) or [1, 1] (a copy of the static scale f32 [1, 1], whatever the granularity).

    scale = max|x| / largest code (127, 448, 57344), at least 1e-10, computed in f32. code = x / scale (f32 division),
    saturated to the largest code, rounded to nearest even. For finite x.
    """
    values = x.float()
    limit = largest_code(out_dtype)  # divided by as a tensor: a GPU multiplies by the reciprocal of a plain number
    if static_scale is not None:
        scales = static_scale.clone()
        wide = scales
    elif granularity == "token":
        scales = (values.abs().amax(1, keepdim=True) / values.new_tensor(limit)).clamp_min(1e-10)
        wide = scales
    else:
        padded = torch.nn.functional.pad(values, (0, -values.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        scales = (padded.abs().amax(2) / values.new_tensor(limit)).clamp_min(1e-10)
        wide = scales.repeat_interleave(GROUP, 1)[:, : x.shape[1]]
    codes = (values / wide).clamp(-limit, limit)
    return (codes.round() if out_dtype == torch.int8 else codes).to(out_dtype), scales


def largest_code(dtype: torch.dtype) -> float:
    """The largest finite value that is used: symmetric for int8."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def fake(x, out_dtype=torch.float8_e4m3fn, granularity="token", static_scale=None):  # type: ignore[no-untyped-def]
    rows, width = x.shape
    shape = (1, 1) if static_scale is not None else (rows, 1 if granularity == "token" else -(-width // GROUP))
    return x.new_empty(rows, width, dtype=out_dtype), x.new_empty(shape, dtype=torch.float32)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size, act_bytes."""
    elements = sum(q_lens) * dims["hidden_size"]
    return Cost(3 * elements, elements * (dims.get("act_bytes", 2) + 1))


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"out_dtype": bound["out_dtype"], "granularity": bound["granularity"], "static": bound.get("static_scale") is not None}


quantize_activation = Op("quantize_activation", reference, fake, cost, cases=QUANTIZE_CASES,
                         bind_args=("out_dtype", "granularity", "static_scale"), row_args=("x",), facts=facts,
                         tolerance=Tolerance(exact=True))  # fmt: skip
