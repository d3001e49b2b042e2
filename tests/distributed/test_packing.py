"""What steps take as pickles, and that they come back as they were."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.engine.packing import pack, pack_lists, unpack, unpack_lists
from framework.engine.step import NewRequest, StepInput, StepOutput, TokenLogprobs
from framework.sampling_params import SamplingParams

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.integers(-(2**15) - 1, 2**15)


@given(st.lists(INTEGERS))
def test_lists_come_back(values: list[int]) -> None:
    assert unpack(pack(values)) == values


@given(st.lists(st.lists(INTEGERS, max_size=4)))
def test_lists_of_lists_come_back(lists: list[list[int]]) -> None:
    assert unpack_lists(pack_lists(lists)) == lists


def test_steps_come_back() -> None:
    new = NewRequest(1, "r", [5, 70_000, 3], 3, 0, [[1, 2], []], SamplingParams(seed=2**64 - 1), snapshot=7)
    drafts = [[], [2, -1]]
    full = StepInput(1, [0, 1], [1, 3], [1, 2], [new], [4], [(0, 0, [1]), (1, 1, [4, 5])], [(0, 1, 2)], [1], [3, 4], drafts, 2)
    kept = StepInput(0, [3], [1], [1], snapshots=[(3, 0), (1, 5)])
    for step in (full, kept, StepInput(0, [3], [1], [1]), StepInput(0, [3], [1], [1], released=[1, 2], num_proposals=3)):
        assert pickle.loads(pickle.dumps(step)) == step
    logprobs = {0: TokenLogprobs(1, -0.5, 1, [1, 2], [-0.5, -1.5])}
    output = StepOutput(3, [1, 2, -1], [0, 1], logprobs, {1: [logprobs[0]]}, {0: "no"}, [[1], [2, 3]])
    assert pickle.loads(pickle.dumps(output)) == output
    assert pickle.loads(pickle.dumps(StepOutput(0, []))) == StepOutput(0, [])


@pytest.mark.parametrize("num_rows", [1, 64, 256, 1024])
def test_a_decode_step_takes_8_bytes_a_row_and_200(num_rows: int) -> None:
    """Even where every row begins a block, anywhere in a cache of millions."""
    rng = random.Random(0)
    seats = rng.sample(range(num_rows), num_rows)
    blocks = [(seat, 0, [rng.randrange(2**22)]) for seat in seats]
    step = StepInput(10**6, seats, [1] * num_rows, [1] * num_rows, new_blocks=blocks)
    assert len(pickle.dumps(step, pickle.HIGHEST_PROTOCOL)) <= 8 * num_rows + 200
