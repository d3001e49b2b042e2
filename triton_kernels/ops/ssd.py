"""``ssd_scan``: the recurrence of Mamba 2, one decay per head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.ssd import CASES
from ..op import Cost, Op
from ..state_meta import StateMeta, initial_state


def reference(
    x: torch.Tensor,
    dt: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    d: torch.Tensor,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
) -> torch.Tensor:
    """The recurrence over each request's tokens, one after the other -> [T, H, P] in x's dtype.

    x [T, H, P], b, c [T, G, N] (last dimensions contiguous, heads side by side); head h reads group h // (H / G). dt [T, H]: raw
    step sizes, with dt_bias f32 [H]; a_log, d f32 [H]. state [num_slots, H, P, N], float32 best, in place. Per head and token, with
    step = clamp(softplus(dt + dt_bias), dt_min, dt_max):

        S = exp(-exp(a_log) * step) * S + step * x b^T;  out = S c + d * x

    The state is rounded to its dtype after every token, so that it does not matter where a prompt is cut.
    Source: Dao and Gu, arXiv 2405.21060.
    """
    out, group = torch.zeros_like(x), x.shape[1] // b.shape[1]
    step = torch.nn.functional.softplus(dt.double() + dt_bias.double()).clamp(dt_min, dt_max)
    decay = torch.exp(-torch.exp(a_log.double()) * step)
    b, c = (rows.double().repeat_interleave(group, 1) for rows in (b, c))
    for run in meta.runs():
        current = initial_state(state, run)
        for t in range(run.rows.start, run.rows.stop):
            added = (step[t, :, None] * x[t].double())[:, :, None] * b[t, :, None, :]
            current = (decay[t, :, None, None] * current.double() + added).to(state.dtype)
            read = torch.einsum("hpn,hn->hp", current.double(), c[t])
            out[t] = (read + d.double()[:, None] * x[t].double()).to(x.dtype)
        state[run.slot] = current
    return out


def fake(x, dt, b, c, state, meta, a_log, dt_bias, d, dt_min=0.0, dt_max=float("inf")):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_heads, head_dim, num_groups, state_size, act_bytes, state_bytes. The operations are the recurrence's; the states of
    requests that have no earlier tokens are not read."""
    tokens, channels, size = sum(q_lens), dims["num_heads"] * dims["head_dim"], dims["state_size"]
    states = sum((q > 0) + (context > q > 0) for q, context in zip(q_lens, ctx_lens))
    widths = 2 * channels + dims["num_heads"] + 2 * dims["num_groups"] * size
    moved = tokens * widths * dims.get("act_bytes", 2) + states * channels * size * dims.get("state_bytes", 4)
    return Cost(5 * tokens * channels * size, moved)


ssd_scan = Op(
    "ssd_scan",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("a_log", "dt_bias", "d", "dt_min", "dt_max"),
    mutates=("state",),
    row_args=("x", "dt", "b", "c", "meta"),
)
