"""A batch with states, all at once and in chunks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from triton_kernels.lab.calls import call, make_args
from triton_kernels.op import Op
from triton_kernels.state_meta import StateMeta

OPS_WITH_STATES = ("causal_conv1d", "gated_delta_rule", "ssd_scan", "selective_scan")


def whole_and_in_chunks(op: Op, bound: Callable[..., Any], case_name: str, seed: int) -> tuple[list[torch.Tensor], ...]:
    """Output and state of a case's batch in one call, and in as many calls as random cuts of its requests take."""
    [case] = [case for case in op.cases if case.name == case_name]
    args = make_args(op, case, torch.float32, torch.device("cpu"))
    meta: StateMeta = args["meta"]
    whole_args, generator = copy.deepcopy(args), torch.Generator().manual_seed(seed)
    whole = call(op, bound, whole_args)
    pieces = torch.full_like(whole[0], torch.nan)
    bounds, done = meta.cu_q.tolist(), [0] * meta.num_reqs
    while any(bounds[r] + done[r] < bounds[r + 1] for r in range(meta.num_reqs)):
        left = [bounds[r + 1] - bounds[r] - done[r] for r in range(meta.num_reqs)]
        sizes = [int(torch.randint(0, min(most, 30) + 1, (), generator=generator)) for most in left]
        rows = torch.cat([torch.arange(size) + bounds[r] + done[r] for r, size in enumerate(sizes)])
        if not sum(sizes):
            continue
        cu_q = torch.tensor([0, *sizes]).cumsum(0).int()
        is_first = meta.is_first & (torch.tensor(done) == 0)
        part = {name: args[name][rows] for name in op.row_args if name != "meta" and args[name] is not None}
        part["meta"] = StateMeta(cu_q, meta.slots, is_first, max(sizes))
        [out] = call(op, bound, {**args, **part})
        pieces[rows] = out
        done = [before + size for before, size in zip(done, sizes)]
    return [*whole, whole_args["state"]], [pieces, args["state"]]
