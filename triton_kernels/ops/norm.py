"""``rms_norm`` and ``layer_norm``, each with a fused residual add; ``rms_norm`` can quantize its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.norm import LAYER_NORM_CASES, RMS_NORM_CASES
from ..op import Cost, Op, Tolerance
from .quantize import OUTPUT_ARGS, Granularity, fake_output, output, output_bytes, output_facts, output_numbers


def rms_norm_reference(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    out_dtype: torch.dtype | None = None,
    granularity: Granularity = "token",
    static_scale: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Root-mean-square norm over the last dimension.

    x [..., H]; residual [..., H] or None: if given it becomes x + residual (rounded once to its dtype), in place, and that
    rounded sum is what is normalized. weight [H]; the factor is ``offset + weight`` (Gemma: offset 1). Returns [..., H] in x's
    dtype; with an ``out_dtype`` of 8 bits quantized values [..., H] and scales f32 [..., 1] or [..., ceil(H/128)] or [1, 1]
    instead, by the rule of ``quantize_activation``, of the norm in f32.
    """
    if residual is not None:
        residual.copy_(x.double() + residual.double())
        source = residual.double()
    else:
        source = x.double()
    scaled = source * torch.rsqrt(source.square().mean(-1, keepdim=True) + eps)
    return output(scaled * (weight.double() + offset), x.dtype, out_dtype, granularity, static_scale)


def layer_norm_reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Layer norm over the last dimension; residual as in :func:`rms_norm_reference`. weight, bias [H]."""
    if residual is not None:
        residual.copy_(x.double() + residual.double())
        source = residual.double()
    else:
        source = x.double()
    centred = source - source.mean(-1, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.double()
    return (out if bias is None else out + bias.double()).to(x.dtype)


def rms_norm_fake(x, residual, weight, eps, offset=0.0, **quantized):  # type: ignore[no-untyped-def]
    return fake_output(x, x.shape, **quantized)


def layer_norm_fake(x, residual, weight, bias, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size, act_bytes, residual (1 when fused); quantized: out_bytes, num_scales per token."""
    num_tokens, width = sum(q_lens), dims["hidden_size"]
    read_and_summed = num_tokens * width * dims.get("act_bytes", 2) * (3 if dims.get("residual") else 1)
    return Cost(4 * num_tokens * width, read_and_summed + output_bytes(dims, num_tokens, width))


rms_norm = Op(
    "rms_norm",
    rms_norm_reference,
    rms_norm_fake,
    cost,
    cases=RMS_NORM_CASES,
    bind_args=("weight", "eps", "offset", *OUTPUT_ARGS),
    optional=OUTPUT_ARGS,
    mutates=("residual",),
    row_args=("x", "residual"),
    facts=output_facts,
    tolerance=Tolerance(numbers=output_numbers),
)
layer_norm = Op(
    "layer_norm",
    layer_norm_reference,
    layer_norm_fake,
    cost,
    cases=LAYER_NORM_CASES,
    bind_args=("weight", "bias", "eps"),
    mutates=("residual",),
    row_args=("x", "residual"),
)
