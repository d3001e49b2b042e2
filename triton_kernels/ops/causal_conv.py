"""``causal_conv1d``: the short convolution in front of a recurrence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.causal_conv import CASES
from ..op import Cost, Op
from ..state_meta import StateMeta, initial_state


def reference(
    x: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = "silu",
) -> torch.Tensor:
    """Convolution over a request's tokens, a filter for each channel -> [T, C] in x's dtype.

    x [T, C] (last dimension contiguous); state [num_slots, W - 1, C] in x's dtype: the request's last inputs, oldest first, in
    place; weight [C, W], whose last column is for the token itself; bias [C] or None; activation "silu" or None.
    Source: Gu and Dao, arXiv 2312.00752, section 3.4.
    """
    out = torch.zeros_like(x)
    for run in meta.runs():
        window = torch.cat([initial_state(state, run), x[run.rows]])
        taps = window.double().unfold(0, weight.shape[1], 1)  # [n, C, W]
        total = (taps * weight.double()).sum(-1)
        total = total if bias is None else total + bias.double()
        out[run.rows] = (torch.nn.functional.silu(total) if activation else total).to(x.dtype)
        state[run.slot] = window[len(window) - state.shape[1] :]
    return out


def fake(x, state, meta, weight, bias=None, activation="silu"):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_channels, width, act_bytes. The states of requests that have no earlier tokens are not read."""
    tokens, channels, width = sum(q_lens), dims["num_channels"], dims["width"]
    states = sum((q > 0) + (context > q > 0) for q, context in zip(q_lens, ctx_lens))
    moved = (2 * tokens + states * (width - 1)) * channels * dims.get("act_bytes", 2)
    return Cost((2 * width + 4) * tokens * channels, moved)


causal_conv1d = Op(
    "causal_conv1d",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("weight", "bias", "activation"),
    mutates=("state",),
    row_args=("x", "meta"),
)
