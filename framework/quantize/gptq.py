"""GPTQ (arXiv 2210.17323): inputs are rounded one after another, and what rounding one costs is made up for by those to come."""

from __future__ import annotations

import torch

from ..models.quantization.rounding import group_length, int_grid, round_to_grid
from .formats import BITS, Grid, QuantizedWeight
from .layerwise import Layer

BLOCK = 128
DAMPING = 0.01


def quantize_layer(layer: Layer, grid: Grid, act_order: bool) -> dict[str, QuantizedWeight]:
    """Quantizes the linear layers of a decoder layer in the order of the data, so that later ones see what earlier ones have
    become; those that share their inputs (q, k, v) share one Hessian. The module gets the dequantized weights. Returns them by
    their names on disk."""
    found = {}
    for name, part in layer.linears.items():
        gram = layer.statistics([name])[name].gram
        for source in part.sources:
            weight = layer.submodule(source).weight.data
            found[source] = gptq(weight, gram, grid, act_order)
            weight.copy_(found[source].dequantize())
    return found


def gptq(weight: torch.Tensor, gram: torch.Tensor, grid: Grid, act_order: bool) -> QuantizedWeight:
    """Rounds weight float32 [N, K] to 4 bits such that the error of x @ weight^T is small over the inputs of which ``gram``
    [K, K] is the sum of x^T x.

    act_order  the inputs with the largest squares first; groups are then of inputs that are near in this order
    """
    num_in = weight.shape[1]
    length = group_length(num_in, grid.group_size)
    order = gram.diagonal().argsort(descending=True) if act_order else torch.arange(num_in, device=weight.device)
    work, factor = _prepared(weight[:, order], gram[order][:, order])
    values = torch.empty_like(work)
    all_scales, all_zeros = [], []
    block = BLOCK if length % BLOCK == 0 or length == num_in else length  # no group begins inside a block and ends outside it
    for start in range(0, num_in, block):
        now = work[:, start : start + block]
        inverse = factor[start : start + block, start:]
        errors = torch.empty_like(now)
        for i in range(now.shape[1]):
            if (start + i) % length == 0:
                scales, zeros = int_grid(work[:, start + i : start + i + length], BITS, grid.symmetric, grid.scale_dtype)
                zeros = zeros.clamp(min=1)  # the format stores zero points less 1
                all_scales.append(scales)
                all_zeros.append(zeros)
            values[:, start + i] = round_to_grid(now[:, i], scales, zeros, BITS)
            errors[:, i] = (now[:, i] - (values[:, start + i] - zeros) * scales) / inverse[i, i]
            now[:, i:] -= errors[:, i : i + 1] * inverse[i, i : now.shape[1]]
        work[:, start + block :] -= errors @ inverse[:, now.shape[1] :]
    where = order.argsort()
    return QuantizedWeight(
        values[:, where].to(torch.uint8),
        torch.stack(all_scales, 1).to(grid.scale_dtype),
        None if grid.symmetric else torch.stack(all_zeros, 1).to(torch.uint8),
        (where // length).int() if act_order else None,
    )


def _prepared(weight: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight without inputs that never were anything but 0, and the upper Cholesky factor [K, K] of the damped Hessian's
    inverse: row i says how an error at input i is spread over the later ones."""
    hessian = gram.double()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return weight.masked_fill(dead, 0.0), torch.linalg.cholesky(inverse, upper=True).float()
