"""``gated_delta_rule``: linear attention whose state forgets, and is corrected rather than added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.gated_delta import CASES
from ..op import Cost, Op
from ..state_meta import StateMeta, initial_state

NORM_EPS = 1e-6
"""Added to the squared length of queries and keys."""


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The gated delta rule over each request's tokens, one after the other -> [T, Hv, Dv] in v's dtype.

    q, k [T, Hk, Dk], v [T, Hv, Dv] (last dimensions contiguous, heads side by side); value head h reads key head h // (Hv / Hk).
    a, b [T, Hv]: raw gates, with a_log and dt_bias f32 [Hv]. state [num_slots, Hv, Dk, Dv], float32 best, in place. Per head and
    token, with q and k divided by their lengths, sqrt(|.|^2 + 1e-6):

        S = exp(-exp(a_log) * softplus(a + dt_bias)) * S;  S = S + k (sigmoid(b) * (v - k S));  out = scale * q S

    The state is rounded to its dtype after every token, so that it does not matter where a prompt is cut.
    Source: Yang et al., Gated Delta Networks, arXiv 2412.06464.
    """
    out, group = torch.zeros_like(v), v.shape[1] // k.shape[1]
    decay = torch.exp(-torch.exp(a_log.double()) * torch.nn.functional.softplus(a.double() + dt_bias.double()))
    rate = torch.sigmoid(b.double())
    q, k = (_unit(x.double()).repeat_interleave(group, 1) for x in (q, k))
    for run in meta.runs():
        current = initial_state(state, run)
        for t in range(run.rows.start, run.rows.stop):
            decayed = current.double() * decay[t, :, None, None]
            missing = v[t].double() - torch.einsum("hk,hkv->hv", k[t], decayed)
            current = (decayed + k[t, :, :, None] * (rate[t, :, None] * missing)[:, None]).to(state.dtype)
            out[t] = (scale * torch.einsum("hk,hkv->hv", q[t], current.double())).to(v.dtype)
        state[run.slot] = current
    return out


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def fake(q, k, v, a, b, state, meta, a_log, dt_bias, scale):  # type: ignore[no-untyped-def]
    return v.new_empty(v.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_k_heads, num_v_heads, k_dim, v_dim (of a head), act_bytes, state_bytes. The operations are the recurrence's; the
    states of requests that have no earlier tokens are not read."""
    tokens, element = sum(q_lens), dims["num_v_heads"] * dims["k_dim"] * dims["v_dim"]
    states = sum((q > 0) + (context > q > 0) for q, context in zip(q_lens, ctx_lens))
    widths = 2 * dims["num_k_heads"] * dims["k_dim"] + 2 * dims["num_v_heads"] * (dims["v_dim"] + 1)
    return Cost(7 * tokens * element, tokens * widths * dims.get("act_bytes", 2) + states * element * dims.get("state_bytes", 4))


gated_delta_rule = Op(
    "gated_delta_rule",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("a_log", "dt_bias", "scale"),
    mutates=("state",),
    row_args=("q", "k", "v", "a", "b", "meta"),
)
