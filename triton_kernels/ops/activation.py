"""``silu_and_mul`` and ``gelu_and_mul``: the gated activations of an MLP, which can quantize their output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from ..cases.activation import GELU_CASES, SILU_CASES
from ..op import Cost, Op, Tolerance
from .quantize import OUTPUT_ARGS, Granularity, fake_output, output, output_bytes, output_facts, output_numbers


def silu_and_mul_reference(
    x: torch.Tensor,
    out_dtype: torch.dtype | None = None,
    granularity: Granularity = "token",
    static_scale: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x [T, 2I] -> silu(x[:, :I]) * x[:, I:], [T, I] in x's dtype; with an ``out_dtype`` of 8 bits quantized values [T, I] and
    scales f32 [T, 1], [T, ceil(I/128)] or [1, 1] instead, by the rule of ``quantize_activation``, of the product in f32.

    Source: Shazeer, GLU variants, arXiv 2002.05202.
    """
    gate, up = x.double().chunk(2, dim=-1)
    return output(torch.nn.functional.silu(gate) * up, x.dtype, out_dtype, granularity, static_scale)


def gelu_and_mul_reference(
    x: torch.Tensor,
    approximate: Literal["none", "tanh"] = "tanh",
    out_dtype: torch.dtype | None = None,
    granularity: Granularity = "token",
    static_scale: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x [T, 2I] -> gelu(x[:, :I]) * x[:, I:], [T, I]; quantized as in :func:`silu_and_mul_reference`."""
    gate, up = x.double().chunk(2, dim=-1)
    values = torch.nn.functional.gelu(gate, approximate=approximate) * up
    return output(values, x.dtype, out_dtype, granularity, static_scale)


def fake(x, approximate="tanh", **quantized):  # type: ignore[no-untyped-def]
    return fake_output(x, (*x.shape[:-1], x.shape[-1] // 2), **quantized)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: intermediate_size, act_bytes; quantized: out_bytes, num_scales per token."""
    num_tokens, width = sum(q_lens), dims["intermediate_size"]
    read = 2 * num_tokens * width * dims.get("act_bytes", 2)
    return Cost(6 * num_tokens * width, read + output_bytes(dims, num_tokens, width))


silu_and_mul = Op(
    "silu_and_mul",
    silu_and_mul_reference,
    fake,
    cost,
    cases=SILU_CASES,
    bind_args=OUTPUT_ARGS,
    optional=OUTPUT_ARGS,
    row_args=("x",),
    facts=output_facts,
    tolerance=Tolerance(numbers=output_numbers),
)
gelu_and_mul = Op(
    "gelu_and_mul",
    gelu_and_mul_reference,
    fake,
    cost,
    cases=GELU_CASES,
    bind_args=("approximate", *OUTPUT_ARGS),
    optional=OUTPUT_ARGS,
    row_args=("x",),
    facts=output_facts,
    tolerance=Tolerance(numbers=output_numbers),
)
