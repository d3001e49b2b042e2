"""``silu_and_mul`` and ``gelu_and_mul``: the gated activations of an MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from ..cases.activation import GELU_CASES, SILU_CASES
from ..op import Cost, Op


def silu_and_mul_reference(x: torch.Tensor) -> torch.Tensor:
    """x [T, 2I] -> silu(x[:, :I]) * x[:, I:], [T, I]. Source: Shazeer, GLU variants, arXiv 2002.05202."""
    gate, up = x.double().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def gelu_and_mul_reference(x: torch.Tensor, approximate: Literal["none", "tanh"] = "tanh") -> torch.Tensor:
    """x [T, 2I] -> gelu(x[:, :I]) * x[:, I:], [T, I]."""
    gate, up = x.double().chunk(2, dim=-1)
    return (torch.nn.functional.gelu(gate, approximate=approximate) * up).to(x.dtype)


def fake(x: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: intermediate_size, act_bytes."""
    elements = sum(q_lens) * dims["intermediate_size"]
    return Cost(6 * elements, 3 * elements * dims.get("act_bytes", 2))


silu_and_mul = Op("silu_and_mul", silu_and_mul_reference, fake, cost, cases=SILU_CASES, row_args=("x",))
gelu_and_mul = Op("gelu_and_mul", gelu_and_mul_reference, fake, cost, cases=GELU_CASES, bind_args=("approximate",),
                  row_args=("x",))  # fmt: skip
