"""``moe_experts`` as one GEMM per expert that has tokens, over the tokens sorted by expert.

Quantized weights are dequantized expert by expert in each call, activations that the contract quantizes are rounded to the
values of their quantized values. On a GPU the sizes of the groups have to reach the host, so this impl is not fit for graphs.
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...ops.gemm import FP8_BLOCK
from ...ops.moe import fp8_granularity, gated
from ...ops.quantize import Granularity
from ..gemm_fp8.torch import dequantized as dequantized_fp8
from ..gemm_w4a16.torch import dequantized as dequantized_int4
from ..quantize_activation.torch import quantize


@impl("moe_experts", "torch", priority=10, flags=Flags(cuda_graph=False))
def moe_experts_torch(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    expert_start: int = 0,
    w13_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w13_zeros: torch.Tensor | None = None,
    w2_zeros: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    limit: float | None = None,
    alpha: float = 1.702,
    weighs_input: bool = False,
) -> torch.Tensor:
    num_experts, top_k = w13.shape[0], ids.shape[1]
    granularity = fp8_granularity(w13, w13_scale)
    local = local_experts(ids, expert_start, num_experts)
    order = local.argsort(stable=True)
    counts = torch.bincount(local, minlength=num_experts + 1).tolist()
    rows = (x if granularity is None else _rounded_to_quantized(x, granularity)).index_select(0, order // top_k)
    results = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(counts[:num_experts]):
        if count:
            part = slice(start, start + count)
            weight = _expert_weight(w13, w13_scale, w13_zeros, expert, 2, x.dtype)
            taken = rows[part]
            if weighs_input:
                taken = (taken * weights.flatten()[order[part], None]).to(taken.dtype)
            bias = None if w13_bias is None else w13_bias[expert].to(weight.dtype)
            hidden = gated(torch.nn.functional.linear(taken, weight, bias), limit, alpha)
            if granularity is not None:
                hidden = _rounded_to_quantized(hidden, granularity)
            weight = _expert_weight(w2, w2_scale, w2_zeros, expert, 1, x.dtype)
            bias = None if w2_bias is None else w2_bias[expert].to(weight.dtype)
            results[part] = torch.nn.functional.linear(hidden, weight, bias)
            start += count
    results[start:] = 0  # choices whose experts are elsewhere
    return combine(results, order, torch.ones_like(weights) if weighs_input else weights).to(x.dtype)


def local_experts(ids: torch.Tensor, expert_start: int, num_experts: int) -> torch.Tensor:
    """int64 [T * k]: the experts of all choices, counted from ``expert_start``; num_experts for those elsewhere."""
    local = ids.flatten().long() - expert_start
    return torch.where((local >= 0) & (local < num_experts), local, num_experts)


def combine(results: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """f32 [T, H]: the sum of each token's results times router weights [T, k]; row i of ``results`` is that of choice order[i]."""
    unsorted = torch.empty_like(results).index_copy_(0, order, results).unflatten(0, weights.shape)
    return (unsorted * weights[:, :, None]).sum(1)


def _rounded_to_quantized(x: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """f32: what the float8 quantized values of x stand for."""
    return dequantized_fp8(*quantize(x, torch.float8_e4m3fn, granularity, None), 1)


def _expert_weight(
    quantized: torch.Tensor, scales: torch.Tensor | None, zeros: torch.Tensor | None, expert: int, parts: int, dtype: torch.dtype
) -> torch.Tensor:
    """One expert's weight [R, K]: ``parts`` matrices, whose blocks of rows are counted apart. 4-bit quantized values in ``dtype``,
    float8 in f32."""
    if scales is None:
        return quantized[expert]
    if quantized.dtype == torch.int32:
        found = {"qweight": quantized[expert], "scales": scales[expert]}
        return dequantized_int4(found if zeros is None else {**found, "zeros": zeros[expert]}, dtype)
    rows = quantized.shape[1] // parts
    row_block = 1 if scales.shape[1] == quantized.shape[1] else FP8_BLOCK
    of_rows = [scale.repeat_interleave(row_block, 0)[:rows] for scale in scales[expert].chunk(parts)]
    return dequantized_fp8(quantized[expert], torch.cat(of_rows), 1)
