"""What the scheduler asks about drafts, and what it tells of them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from framework.engine.scheduled import Chunk, ScheduledStep
from framework.engine.speculation import Speculation
from framework.engine.step import StepInput, StepOutput
from framework.speculation.depth import Checked


class Noting:
    """A policy of depth that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def of(self, num_running: int) -> int:
        return 3

    def observe(self, step: Checked) -> None:
        self.told.append(tuple(step))


@pytest.mark.parametrize(
    ("length", "num_proposed", "expected"),
    [
        (10, 3, 3),
        (10, 1, 1),  # the step before made fewer
        (27, 3, 3),
        (28, 3, 2),  # longer than the drafter can follow
        (30, 3, 0),
        (31, 3, 0),
    ],
)
def test_rows_have_no_more_drafts_than_were_made_and_than_the_drafter_can_follow(
    length: int, num_proposed: int, expected: int
) -> None:
    by_device = Speculation(Noting(), 20, max_model_len=30)
    request: Any = SimpleNamespace(max_total=100, num_tokens=length, num_proposed=num_proposed)
    assert by_device.drafts(request, 5) == ([-1] * expected, expected)


@pytest.mark.parametrize(("length", "expected"), [(10, 5), (14, 5), (15, 4), (18, 1), (19, 0), (20, None)])
def test_the_last_token_of_a_request_needs_no_draft(length: int, expected: int | None) -> None:
    request: Any = SimpleNamespace(max_total=20, num_tokens=length, num_proposed=9)
    found = Speculation(Noting(), 20).drafts(request, 5)
    assert found == (None if expected is None else ([-1] * expected, expected))


def test_what_a_step_tells_about_depth() -> None:
    """Of four rows that decode, one may have no draft, and one has none though it might; a prompt beside them."""
    policy: Noting = Noting()
    requests: list[Any] = [SimpleNamespace(was_right=False, arrival_s=0.5) for _ in range(5)]
    speculation = Speculation(policy, 20)
    chunks = [
        Chunk(requests[1], 1, 9, 1, (), room=3),
        Chunk(requests[2], 4, 9, 4, [1, 2, 3], room=3),
        Chunk(requests[3], 3, 9, 3, [1, 2], room=2),
    ]
    prompt = Chunk(requests[4], 5, 5, 0)

    def told(
        accepted: list[int], more: list[Chunk], submitted_s: float, end_s: float, drafts: tuple[int, ...] = (0, 0, 3, 2)
    ) -> tuple[Any, ...]:
        wanted = [1 + n for n in drafts] + [0] * len(more)
        num_tokens = [n or 5 for n in wanted]
        step = StepInput(0, list(range(len(wanted))), num_tokens, wanted)
        scheduled = ScheduledStep(step, requests[:1], [*chunks, *more], num_drafts=3, submitted_s=submitted_s)
        assert speculation.observe(scheduled, StepOutput(0, [], num_accepted=accepted), end_s) == (list(drafts), accepted)
        return policy.told[-1]

    assert told([0, 0, 3, 1], [], 1.0, 1.5) == (4, 3, [3, 2, 1], [2, 1, 1], (0, 0), 0.5)
    assert told([0, 0, 0, 2], [], 1.25, 2.0) == (4, 3, [3, 1, 0], [1, 1, 0], (1, 0), 0.5), (
        "it began before the one before had ended"
    )
    assert told([0, 0, 3, 1], [prompt], 2.0, 3.0) == (4, 3, [3, 2, 1], [2, 1, 1], (1, 1), None)
    assert told([0, 0, 0, 0], [], 3.0, 3.0) == (4, 3, [3, 0, 0], [0, 0, 0], (1, 0), None), "a clock that stands still"
    assert told([0, 0, 0, 0], [], 3.5, 4.0)[-1] == 1.0, "the host worked between the steps"
    assert [told([0, 0, 0, 0], [], 4.0, end_s)[-1] for end_s in (math.inf, math.nan, 3.0, 4.0)] == [None, None, None, 1.0], (
        "it jumps"
    )
    requests[0].arrival_s = 4.25
    assert told([0, 0, 0, 0], [], 4.5, 5.0)[-1] == 1.0, "others were there"
    for request in requests:
        request.arrival_s = 5.25
    assert told([0, 0, 0, 0], [], 5.5, 6.0)[-1] == 0.5, "there was nothing to do"


def test_a_step_without_room_for_drafts_says_nothing_about_them() -> None:
    policy, request = Noting(), SimpleNamespace(was_right=True, arrival_s=0.0)
    scheduled = ScheduledStep(StepInput(0, [0], [1], [1]), [request], [], num_drafts=2)  # type: ignore[list-item]
    Speculation(policy, 20).observe(scheduled, StepOutput(0, [], num_accepted=[0]), 1.0)
    assert policy.told == [(1, 2, [], [], (0, 0), 1.0)] and request.was_right
