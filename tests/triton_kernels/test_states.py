"""States go from chunk to chunk."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.lab.calls import bind, make_args, make_spec
from triton_kernels.lab.conformance import relative_error
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.state_meta import StateMeta

from .chunked_states import OPS_WITH_STATES, whole_and_in_chunks

REGISTRY = Registry.load()
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize("op_name", OPS_WITH_STATES)
def test_chunks_are_the_whole(op_name: str, name: str, seed: int) -> None:
    op, impl = OPS[op_name], REGISTRY.impls(op_name)[name]
    [case] = [case for case in op.cases if case.name == "chunks"]
    args = make_args(op, case, torch.float32, CPU)
    bound = bind(op, impl, make_spec(op, args, torch.float32, CPU), args)
    for whole, pieces in zip(*whole_and_in_chunks(op, bound, "chunks", seed), strict=True):
        if name == "reference":
            assert torch.equal(whole.nan_to_num(7.0), pieces.nan_to_num(7.0))
        assert relative_error(pieces, whole) < 1e-5


def test_requests_of_a_batch_are_taken_with_their_slots() -> None:
    meta = StateMeta(torch.tensor([0, 3, 3, 9]).int(), torch.tensor([4, 0, -1]).int(), torch.tensor([True, False, True]), 6)
    assert [tuple(run) for run in meta.runs()] == [(slice(0, 3), 4, True)]
    part = meta.take(1, 3)
    assert part.cu_q.tolist() == [0, 0, 6] and part.slots.tolist() == [0, -1] and part.max_q == 6
