"""GPTQ against its definition in float64, and against rounding to nearest."""

from __future__ import annotations

import pytest
import torch

from framework.quantize.formats import Grid
from framework.quantize.gptq import DAMPING, gptq


def problem(num_out: int, num_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs that are far from independent and of very different sizes."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(num_out, num_in, generator=generator)
    mixing = torch.randn(num_in, num_in, generator=generator) * 0.3 + torch.eye(num_in)
    inputs = torch.randn(4 * num_in, num_in, generator=generator) @ mixing * torch.rand(num_in, generator=generator).exp()
    inputs[:, 3] = 0
    return weight, inputs


def by_definition(weight: torch.Tensor, gram: torch.Tensor, group: int) -> torch.Tensor:
    """Optimal brain quantization, input by input in order, in float64, symmetric: the inverse of the Hessian of the inputs that are
    left is updated by elimination. Returns the dequantized weight."""
    weight, hessian = weight.double().clone(), gram.double().clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1.0
    weight[:, dead] = 0
    hessian += torch.eye(len(hessian)) * DAMPING * hessian.diagonal().mean()
    inverse, result = torch.linalg.inv(hessian), torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        if i % group == 0:
            largest = weight[:, i : i + group].abs().amax(1)
            step = (2 * largest / 15).half().double()
        result[:, i] = (torch.clamp(torch.round(weight[:, i] / step), -8, 7)) * step
        weight -= torch.outer((weight[:, i] - result[:, i]) / inverse[i, i], inverse[i])
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[:, i] = inverse[i] = 0
    return result


@pytest.mark.parametrize("group", [16, 48, -1])
def test_by_definition(group: int) -> None:
    weight, inputs = problem(24, 144)
    gram = inputs.T @ inputs
    found = gptq(weight, gram, Grid(group, True), act_order=False).dequantize()
    expected = by_definition(weight, gram, 144 if group == -1 else group)
    # Sums in another order round a value now and then to the other side, and what follows in that row differs with it.
    rows = ((found - expected).abs() < 1e-3).all(1)
    assert float(rows.double().mean()) > 0.9
    assert not found[:, 3].any()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [16, -1])
def test_error_is_smaller_than_by_rounding(group: int, symmetric: bool, act_order: bool) -> None:
    weight, inputs = problem(48, 128)
    found = gptq(weight, inputs.T @ inputs, Grid(group, symmetric), act_order)
    rounded = Grid(group, symmetric).nearest(weight)
    errors = [((inputs.double() @ (w.dequantize().double() - weight.double()).T) ** 2).sum() for w in (found, rounded)]
    assert errors[0] < 0.6 * errors[1]
    assert (found.groups is None) == (not act_order)
    assert int(found.values.max()) <= 15
    assert found.zeros is None or int(found.zeros.min()) >= 1


def test_act_order_groups_the_largest_inputs_first() -> None:
    weight, inputs = problem(8, 64)
    gram = inputs.T @ inputs
    groups = gptq(weight, gram, Grid(16, True), act_order=True).groups
    assert groups is not None
    assert torch.bincount(groups.long()).tolist() == [16] * 4
    assert gram.diagonal()[groups == 0].min() >= gram.diagonal()[groups == 1].max()
