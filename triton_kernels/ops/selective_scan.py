"""``selective_scan``: the recurrence of Mamba 1, a decay for each element of the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.selective_scan import CASES
from ..op import Cost, Op
from ..state_meta import StateMeta, initial_state


def reference(
    x: torch.Tensor,
    dt: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    d: torch.Tensor,
) -> torch.Tensor:
    """The recurrence over each request's tokens, one after the other -> [T, I] in x's dtype.

    x, dt, z [T, I], b, c [T, N] (last dimensions contiguous); a_log f32 [I, N], dt_bias, d f32 [I]. state [num_slots, I, N],
    float32 best, in place. Per channel and token, with step = softplus(dt + dt_bias):

        S = exp(-exp(a_log) * step) * S + step * x * b;  out = (S c + d * x) * silu(z)

    The state is rounded to its dtype after every token, so that it does not matter where a prompt is cut.
    Source: Gu and Dao, arXiv 2312.00752.
    """
    out, rates = torch.zeros_like(x), -torch.exp(a_log.double())
    step = torch.nn.functional.softplus(dt.double() + dt_bias.double())
    gate = torch.nn.functional.silu(z.double())
    for run in meta.runs():
        current = initial_state(state, run)
        for t in range(run.rows.start, run.rows.stop):
            added = (step[t] * x[t].double())[:, None] * b[t].double()
            current = (torch.exp(rates * step[t, :, None]) * current.double() + added).to(state.dtype)
            read = current.double() @ c[t].double() + d.double() * x[t].double()
            out[t] = (read * gate[t]).to(x.dtype)
        state[run.slot] = current
    return out


def fake(x, dt, b, c, z, state, meta, a_log, dt_bias, d):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_channels, state_size, act_bytes, state_bytes. The states of requests that have no earlier tokens are not read."""
    tokens, channels, size = sum(q_lens), dims["num_channels"], dims["state_size"]
    states = sum((q > 0) + (context > q > 0) for q, context in zip(q_lens, ctx_lens))
    moved = tokens * (4 * channels + 2 * size) * dims.get("act_bytes", 2) + states * channels * size * dims.get("state_bytes", 4)
    return Cost(7 * tokens * channels * size, moved)


selective_scan = Op(
    "selective_scan",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("a_log", "dt_bias", "d"),
    mutates=("state",),
    row_args=("x", "dt", "b", "c", "z", "meta"),
)
