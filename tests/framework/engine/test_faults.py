"""Faults at every place of a step: the requests concerned end with the cause, all others get the tokens they get without it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError, EngineDeadError
from framework.engine.prompts import EngineInput
from framework.engine.step import StepInput, StepOutput
from framework.outputs import RequestOutput
from framework.sampling_params import RequestOutputKind, SamplingParams

from ..engines import MODELS, assert_idle, finish, make_config, make_engine, token_params, tokens_of

ERRORS = (RuntimeError("a kernel"), MemoryError(), KeyboardInterrupt())


@dataclass
class Faults:
    """Which submissions fail, before or after the executor has done its part, and which results; by number, with their error."""

    before: dict[int, BaseException] = field(default_factory=dict)
    after: dict[int, BaseException] = field(default_factory=dict)
    results: dict[int, BaseException] = field(default_factory=dict)
    unfit: dict[int, str] = field(default_factory=dict)


class Faulty:
    """An executor with faults around another one."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self.inner, self.faults = inner, faults
        self.num_submitted = 0
        self.failed: set[str] = set()
        self.names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, step: StepInput) -> Any:
        number, self.num_submitted = self.num_submitted, self.num_submitted + 1
        self.names.update((request.seat, request.request_id) for request in step.new)
        rows = [self.names[seat] for seat in step.seats]
        if number in self.faults.before:
            self.failed.update(rows)
            raise self.faults.before[number]
        handle = self.inner.submit(step)
        if number in self.faults.after:
            self.failed.update(rows)
            raise self.faults.after[number]
        unfit = {}
        if number in self.faults.unfit and step.new:
            unfit = {step.seats.index(step.new[0].seat): self.faults.unfit[number]}
            self.failed.add(step.new[0].request_id)
        return FaultyHandle(self, handle, self.faults.results.get(number), rows, unfit)


class FaultyHandle:
    def __init__(self, owner: Faulty, inner: Any, error: BaseException | None, rows: list[str], unfit: dict[int, str]) -> None:
        self.owner, self.inner, self.error, self.rows, self.unfit = owner, inner, error, rows, unfit

    def result(self) -> StepOutput:
        if self.error is not None:
            self.owner.failed.update(self.rows)
            raise self.error
        output: StepOutput = self.inner.result()
        output.failed = self.unfit
        return output


def faulty_engine(faults: Faults, model: str = "full", **config: Any) -> tuple[Engine, Faulty]:
    engine = make_engine(make_config(**config), model, vocab_size=20)
    executor = engine.executor = Faulty(engine.executor, faults)  # type: ignore[assignment]
    return engine, executor


def add(engine: Engine, name: str, prompt: list[int], **params: Any) -> None:
    engine.add_request(name, EngineInput(prompt), token_params(**{"max_tokens": 8, **params}))


def run(engine: Engine) -> dict[str, RequestOutput]:
    """To the end, as a user who presses Ctrl-C and goes on."""
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        try:
            outputs.update((output.request_id, output) for output in engine.step())
        except KeyboardInterrupt:
            continue
    return outputs


def undisturbed(prompt: list[int], params: SamplingParams) -> list[list[int]]:
    engine = make_engine(make_config(num_blocks=200, prefix_caching=False), vocab_size=20)
    engine.add_request("r", EngineInput(prompt), params)
    return tokens_of(finish(engine)["r"])


def assert_as_undisturbed(output: RequestOutput, prompt: list[int], params: SamplingParams, failed: bool) -> None:
    expected = undisturbed(prompt, params)
    assert output.finished and (output.error is not None) == failed
    for found, whole in zip(tokens_of(output), expected, strict=True):
        assert found == whole[: len(found)] if failed else found == whole
    if failed:
        assert "error" in {completion.finish_reason for completion in output.outputs}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["before", "after", "results"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_step_that_fails_ends_its_requests_and_no_others(error: BaseException, place: str, depth: int, number: int) -> None:
    engine, executor = faulty_engine(Faults(**{place: {number: error}}), in_flight_steps=depth, max_num_seqs=2)
    for i in range(4):  # two have seats, two wait
        add(engine, str(i), [1, 2] * 6, seed=i)
    outputs = run(engine)
    assert_idle(engine)
    assert executor.failed == {"0_0", "0_1"}
    for i in range(4):
        assert_as_undisturbed(outputs[str(i)], [1, 2] * 6, token_params(max_tokens=8, seed=i), failed=i < 2)
    expected = f"{type(error).__name__}: {error}"
    assert outputs["0"].error == outputs["1"].error == expected
    add(engine, "later", [1, 2] * 6, seed=9)
    assert_as_undisturbed(run(engine)["later"], [1, 2] * 6, token_params(max_tokens=8, seed=9), failed=False)


def test_ctrl_c_is_raised_and_what_it_ended_is_told_with_the_next_step() -> None:
    engine, _ = faulty_engine(Faults(results={1: KeyboardInterrupt()}))
    add(engine, "r", [1, 2, 3])
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert engine.has_unfinished()
    (output,) = engine.step()
    assert output.finished and output.error == "KeyboardInterrupt: "
    assert_idle(engine)
    add(engine, "r", [1, 2, 3])
    assert len(tokens_of(finish(engine)["r"])[0]) == 8


@pytest.mark.parametrize("place", ["schedule", "commit"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("depth", [1, 2])
def test_an_exception_in_the_books_ends_all_requests_and_they_begin_anew(
    place: str, error: BaseException, depth: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(make_config(in_flight_steps=depth, max_num_seqs=2), vocab_size=20)
    add(engine, "before", [1, 2] * 6)
    finish(engine)
    for i in range(3):
        add(engine, str(i), [1, 2] * 6, seed=i)
    engine.step()
    broken = engine.manager.advance if place == "commit" else engine.manager.grow
    calls = []

    def once(*args: Any) -> Any:
        result = broken(*args)  # done, and nobody knows
        calls.append(args)
        if len(calls) == 1:
            raise error
        return result

    monkeypatch.setattr(engine.manager, broken.__name__, once)
    outputs = run(engine)
    assert calls and {output.error for output in outputs.values()} == {f"{type(error).__name__}: {error}"}
    assert set(outputs) == {"0", "1", "2"} and all(output.finished for output in outputs.values())
    assert sum(r.levelname == "ERROR" for r in caplog.records) == isinstance(error, Exception), "told once; nothing else went wrong"
    assert_idle(engine)
    for i in range(3):
        add(engine, str(i), [1, 2] * 6, seed=i)
    for name, output in run(engine).items():
        assert_as_undisturbed(output, [1, 2] * 6, token_params(max_tokens=8, seed=int(name)), failed=False)
    assert_idle(engine)


@pytest.mark.parametrize("place", ["before", "results"])
def test_a_lost_device_ends_the_engine(place: str) -> None:
    engine, _ = faulty_engine(Faults(**{place: {1: DeviceLostError("illegal address")}}), max_num_seqs=1)
    add(engine, "running", [1, 2])
    add(engine, "waiting", [1, 2])
    engine.step()
    assert engine.errored is None
    outputs = {output.request_id: output for output in engine.step()}
    assert set(outputs) == {"running", "waiting"}
    assert all(output.finished and output.error == "DeviceLostError: illegal address" for output in outputs.values())
    assert isinstance(engine.errored, DeviceLostError) and not engine.has_unfinished()
    with pytest.raises(EngineDeadError, match="illegal address"):
        engine.step()
    with pytest.raises(EngineDeadError, match="illegal address"):
        add(engine, "later", [1])
    assert engine.abort(["running"]) == [] and engine.stats().num_running == 0


def test_a_request_that_the_executor_cannot_take_in_ends_alone() -> None:
    engine, executor = faulty_engine(Faults(unfit={1: "OverflowError: top_k"}), in_flight_steps=2)
    add(engine, "good", [1, 2, 3])
    engine.step()
    add(engine, "bad", [4, 5, 6], output_kind=RequestOutputKind.DELTA)
    executor.faults.unfit = {executor.num_submitted: "OverflowError: top_k"}
    outputs = run(engine)
    assert outputs["bad"].error == "OverflowError: top_k" and tokens_of(outputs["bad"]) == [[]]
    assert_as_undisturbed(outputs["good"], [1, 2, 3], token_params(max_tokens=8), failed=False)
    assert_idle(engine)


def test_aborting_a_request_that_ctrl_c_ended_gives_its_last_output() -> None:
    engine, _ = faulty_engine(Faults(before={0: KeyboardInterrupt()}))
    add(engine, "r", [1])
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    (output,) = engine.abort(["r"])
    assert output.error is not None and not engine.has_unfinished() and engine.step() == []


def test_seats_that_a_failed_submission_was_to_release_are_released_by_the_next() -> None:
    engine, executor = faulty_engine(Faults(), max_num_seqs=4)
    add(engine, "short", [1], max_tokens=1)
    add(engine, "long", [2])
    engine.step()  # the first ends, and its seat is released with the next step
    executor.faults.before[executor.num_submitted] = RuntimeError("a kernel")
    assert run(engine)["long"].error is not None
    for i in range(4):  # every seat is taken
        add(engine, str(i), [1, 2], seed=i)
    for name, output in run(engine).items():
        assert_as_undisturbed(output, [1, 2], token_params(max_tokens=8, seed=int(name)), failed=False)
    assert_idle(engine)


def test_a_request_that_cannot_be_queued_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = faulty_engine(Faults())
    queue = engine.scheduler.add

    def once(request: Any) -> None:
        if request.request_id == "1_r":
            raise MemoryError
        queue(request)

    monkeypatch.setattr(engine.scheduler, "add", once)
    with pytest.raises(MemoryError):
        add(engine, "r", [1, 2, 3], n=3)
    assert_idle(engine)


class Unreadable:
    """A detokenizer that has nothing certain and fails at the end."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        raise RuntimeError("no text")


def test_an_abort_whose_last_text_fails_ends_that_request_alone() -> None:
    engine, _ = faulty_engine(Faults())
    add(engine, "aborted", [1, 2, 3])
    add(engine, "good", [1, 2, 3])
    engine.step()
    engine.processor.groups["aborted"].samples[0].detokenizer = Unreadable()
    (output,) = engine.abort(["aborted"])
    assert output.finished and output.error == "RuntimeError: no text"
    assert_as_undisturbed(run(engine)["good"], [1, 2, 3], token_params(max_tokens=8), failed=False)
    assert_idle(engine)


@pytest.mark.parametrize("max_tokens", [1, 8])
def test_prompt_logprobs_that_cannot_be_told_end_their_request_with_the_cause(
    max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = faulty_engine(Faults())

    def fail(*_: Any) -> None:
        raise RuntimeError("no text")

    monkeypatch.setattr(engine.processor, "_add_prompt_logprobs", fail)
    commit = engine.scheduler.commit

    def with_prompt_logprobs(output: StepOutput) -> Any:
        committed = commit(output)
        committed.prompt_logprobs = [(request, 0, []) for request in committed.requests if request.request_id == "0_asks"]
        return committed

    monkeypatch.setattr(engine.scheduler, "commit", with_prompt_logprobs)
    add(engine, "asks", [1, 2, 3], max_tokens=max_tokens, prompt_logprobs=1)
    add(engine, "good", [1, 2, 3])
    outputs = run(engine)
    assert outputs["asks"].error == "RuntimeError: no text" and tokens_of(outputs["asks"]) == [[]]
    assert_as_undisturbed(outputs["good"], [1, 2, 3], token_params(max_tokens=8), failed=False)
    assert_idle(engine)


def test_a_failed_steps_blocks_are_never_found() -> None:
    engine, _ = faulty_engine(Faults(after={1: RuntimeError()}), max_num_batched_tokens=8)
    add(engine, "fails", [1] * 20)
    assert run(engine)["fails"].error is not None
    add(engine, "again", [1] * 20)
    output = run(engine)["again"]
    assert output.num_cached_tokens == 8, "the first step's tokens; the second's may be anything"
    assert_as_undisturbed(output, [1] * 20, token_params(max_tokens=8), failed=False)


@dataclass
class Arrival:
    prompt: list[int]
    params: SamplingParams
    step: int
    abort: int | None


def arrivals() -> st.SearchStrategy[Arrival]:
    prompt = st.builds(lambda a, b: [*a, *b], st.sampled_from([[], [1] * 17]), st.lists(st.integers(0, 2), min_size=1, max_size=20))
    params = st.builds(
        token_params,
        n=st.sampled_from([1, 1, 2, 3]),
        max_tokens=st.integers(1, 20),
        stop_token_ids=st.sampled_from([[], [3]]),
        seed=st.integers(0, 100),
        output_kind=st.sampled_from([RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY]),
    )
    return st.builds(Arrival, prompt, params, st.integers(0, 12), st.none() | st.integers(0, 30))


def faults() -> st.SearchStrategy[Faults]:
    errors = st.dictionaries(st.integers(0, 25), st.sampled_from(ERRORS), max_size=2)
    return st.builds(Faults, errors, errors, errors, st.dictionaries(st.integers(0, 10), st.just("unfit"), max_size=2))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    requests=st.lists(arrivals(), min_size=1, max_size=8),
    given_faults=faults(),
    model=st.sampled_from(list(MODELS)),
    block_size=st.sampled_from([1, 4, 16]),
    budget=st.sampled_from([7, 64]),
    depth=st.sampled_from([1, 2, 3]),
    seats=st.sampled_from([2, 16]),
    prefix_caching=st.booleans(),
    num_drafts=st.sampled_from([0, 0, 3]),
    spare=st.sampled_from([0, 5, 200]),
)
def test_random_mixes_with_random_faults(
    requests: list[Arrival],
    given_faults: Faults,
    model: str,
    block_size: int,
    budget: int,
    depth: int,
    seats: int,
    prefix_caching: bool,
    num_drafts: int,
    spare: int,
) -> None:
    longest = max(len(request.prompt) + (request.params.max_tokens or 0) for request in requests)
    per_group = -(-longest // block_size) + (-(-budget * depth // block_size) + 2) * (model != "full")
    config = make_config(
        num_blocks=2 + per_group * len(MODELS[model]) + spare,
        block_size=block_size,
        max_num_batched_tokens=budget,
        in_flight_steps=depth,
        max_num_seqs=seats,
        prefix_caching=prefix_caching,
    )
    engine = make_engine(config, model, vocab_size=20, num_drafts=num_drafts)
    executor = engine.executor = Faulty(engine.executor, given_faults)  # type: ignore[assignment]
    served: dict[str, RequestOutput] = {}
    step = 0
    while step <= 30 or engine.has_unfinished():
        for index, request in enumerate(requests):
            if request.step == step:
                engine.add_request(str(index), EngineInput(request.prompt), copy.copy(request.params))
            if request.abort == step:
                served.update((output.request_id, output) for output in engine.abort([str(index)]))
        try:
            for output in engine.step():
                assert output.request_id not in served or not served[output.request_id].finished, (
                    "a finished request has no more outputs"
                )
                served[output.request_id] = output
        except KeyboardInterrupt:
            pass
        step += 1
        assert step < 3000, "the engine makes no progress"
    assert_idle(engine)
    assert sorted(engine.scheduler._free_seats) == list(range(seats)) and not len(engine.scheduler.waiting)
    touched = {name.rpartition("_")[2] for name in executor.failed}
    for index, request in enumerate(requests):
        output = served[str(index)]
        aborted = "abort" in {completion.finish_reason for completion in output.outputs}
        assert not aborted or (request.abort is not None and output.error is None)
        if output.error is not None:
            assert str(index) in touched, "only requests of steps that failed fail"
        assert_as_undisturbed_or_cut(output, request, aborted or output.error is not None)


def assert_as_undisturbed_or_cut(output: RequestOutput, request: Arrival, cut: bool) -> None:
    params = copy.copy(request.params)
    for found, whole in zip(tokens_of(output), undisturbed(request.prompt, params), strict=True):
        assert found == whole[: len(found)] if cut else found == whole
