"""Structured output with drafts: tokens that a grammar forces are drafts, and a draft never decides what a grammar allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from framework import SamplingParams
from framework.config import SchedulerConfig
from framework.engine.engine import Engine
from framework.sampling_params import RequestOutputKind
from framework.structured.backends.llguidance import LlguidanceBackend, LlguidanceMatcher
from framework.structured.matchers import LEADS_NOWHERE

from ...speculating import Job, Oracle, check_equal, comes, make_engine
from ..engines import run
from .vocabularies import TOKENIZER

SCHEMA = {
    "type": "object",
    "properties": {
        "identifier_of_the_customer": {"enum": ["north", "south"]},
        "number_of_the_building": {"type": "integer", "minimum": 1, "maximum": 9},
        "description_of_the_contents": {"enum": ["a", "b"]},
    },
    "required": ["identifier_of_the_customer", "number_of_the_building", "description_of_the_contents"],
    "additionalProperties": False,
}


def long_keys() -> list[Job]:
    """And one that is free."""
    form = {"json": SCHEMA, "disable_any_whitespace": True}
    jobs = [
        ([400 + i, 401], SamplingParams(temperature=t, seed=i, max_tokens=120, structured_outputs=form))  # type: ignore[arg-type]
        for i, t in enumerate([0.0, 0.7, 1.2])
    ]
    return [*jobs, ([500], SamplingParams(seed=9, max_tokens=16))]


@pytest.mark.parametrize("in_flight_steps", [1, 2])
def test_forced_tokens_are_drafts_that_stand(in_flight_steps: int) -> None:
    plain = make_engine()
    expected = run(plain, long_keys())
    scheduler = SchedulerConfig(max_num_seqs=4, in_flight_steps=in_flight_steps)
    drafting = make_engine({"method": "forced", "num_speculative_tokens": 7}, scheduler=scheduler)
    check_equal(run(drafting, long_keys()), expected)
    drafts = drafting.stats().drafts
    assert sum(drafts.accepted) > 0.95 * sum(drafts.drafts) > 90
    assert drafting.stats().num_steps < 0.45 * plain.stats().num_steps


def test_forced_tokens_come_before_what_a_proposer_says() -> None:
    expected = run(make_engine(), long_keys())
    Oracle.comes = {str(i): [] for i in range(4)}  # it knows nothing
    drafting = make_engine({"method": "tests.speculating:Prophet", "num_speculative_tokens": 7})
    check_equal(run(drafting, long_keys()), expected)
    assert sum(drafting.stats().drafts.accepted) > 90


class Misled(Oracle):
    """Proposes another letter than the one that comes."""

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        a, b = (TOKENIZER.encode(letter, add_special_tokens=False)[0] for letter in "ab")
        (right,) = self.comes[request_id][len(token_ids) :][:1] or [a]
        return [b if right == a else a]


def test_a_draft_that_leads_a_grammar_nowhere_ends_no_request_that_would_not_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = [([400], SamplingParams(seed=7, max_tokens=20, structured_outputs={"regex": "[a-z]{12}"}))]  # type: ignore[arg-type]
    expected = run(make_engine(), jobs)
    Oracle.comes, fill, num_dead = comes(jobs, expected), LlguidanceBackend.fill, 0

    def lead_nowhere(
        backend: Any, matchers: list[LlguidanceMatcher], drafts: list[list[int]], masks: np.ndarray, is_short: bool
    ) -> None:
        nonlocal num_dead
        fill(backend, matchers, drafts, masks, is_short)
        if drafts[0]:
            masks[1:] = 0
            num_dead += 1

    monkeypatch.setattr(LlguidanceBackend, "fill", lead_nowhere)
    drafting = make_engine({"method": f"{__name__}:Misled", "num_speculative_tokens": 1})
    check_equal(run(drafting, jobs), expected)
    assert num_dead > 3


def test_the_end_is_held_back_behind_drafts_as_long_as_without() -> None:
    """Nearly all that the model would say is the end, from which on it may: in the middle of what a step checks, too."""
    jobs: list[Job] = []
    for i in range(4):
        given: Any = {"structured_outputs": {"regex": "[ab]*"}, "logit_bias": {0: 60.0}, "stop_token_ids": [0]}
        jobs.append(([400 + i], SamplingParams(seed=i, max_tokens=20, min_tokens=3 + i, **given)))
    expected = run(make_engine(), jobs)
    assert [len(output.outputs[0].token_ids) for output in expected] == [4, 5, 6, 7]
    Oracle.comes = {name: tokens[:-1] + [300] * 4 for name, tokens in comes(jobs, expected).items()}
    drafting = make_engine({"method": "tests.speculating:Prophet", "num_speculative_tokens": 4})
    check_equal(run(drafting, jobs), expected)
    assert sum(drafting.stats().drafts.accepted) > 8


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_who_is_led_nowhere_behind_right_drafts_is_told_so_and_keeps_their_tokens(kind: RequestOutputKind) -> None:
    """A quote must follow, which is a stop token: no grammar allows one in its middle."""
    quote: Any = {"structured_outputs": {"regex": '[a-z]{9}"'}, "stop_token_ids": [4], "output_kind": kind}
    jobs: list[Job] = [([400 + i], SamplingParams(seed=i, max_tokens=20, logprobs=1, **quote)) for i in range(3)]
    engine, drafting = make_engine(), make_engine({"method": "tests.speculating:Prophet", "num_speculative_tokens": 4})
    expected = told(engine, jobs)
    Oracle.comes = {f"0_{name}": [*jobs[int(name)][0], *tokens, *[300] * 4] for name, (tokens, *_) in expected.items()}
    assert told(drafting, jobs) == expected and sum(drafting.stats().drafts.accepted) > 3
    assert {error for *_, error in expected.values()} == {LEADS_NOWHERE} and all(tokens for tokens, *_ in expected.values())
    assert drafting.manager.pool.num_free == drafting.manager.pool.num_blocks - 1


def told(engine: Engine, jobs: list[Job]) -> dict[str, tuple[list[int], str, str | None, str | None]]:
    """What a client puts together of each request's outputs: tokens, text, why it ended, and the error."""
    found: dict[str, tuple[list[int], str, str | None, str | None]] = {}
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), list(prompt), params)
    while engine.has_unfinished():
        for output in engine.step():
            (one,) = output.outputs
            _, params = jobs[int(output.request_id)]
            tokens, text, *_ = found.get(output.request_id, ([], "")) if params.output_kind == RequestOutputKind.DELTA else ([], "")
            found[output.request_id] = [*tokens, *one.token_ids], text + one.text, one.finish_reason, output.error
    return found
