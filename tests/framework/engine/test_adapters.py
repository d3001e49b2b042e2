"""Adapters on the verifying null executor: whatever slots there are, a request computes with its own adapter, and gets on."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.engine.adapters import Adapters
from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError
from framework.engine.executor import LoadedAdapter
from framework.engine.prompts import EngineInput
from framework.engine.request import Request
from framework.engine.step import StepInput
from framework.executor.null import NullExecutor
from framework.lora_request import LoraConfig, LoRARequest
from framework.outputs import RequestOutput

from ..engines import assert_idle, finish, make_config, make_engine, token_params, tokens_of


def lora(number: int, version: int = 0, inplace: bool = False) -> LoRARequest:
    return LoRARequest(f"adapter-{number}", number, f"/adapters/{number}/{version}", inplace)


def engine_with(max_loras: int = 2, max_cpu_loras: int | None = None, **given: Any) -> Engine:
    config = replace(make_config(**given), lora=LoraConfig(True, max_loras, 16, max_cpu_loras))
    return make_engine(config, vocab_size=20)


def add(engine: Engine, name: str, prompt: list[int], adapter: LoRARequest | None, max_tokens: int = 5, **params: Any) -> None:
    engine.add_request(name, EngineInput(prompt), token_params(max_tokens=max_tokens, **params), lora_request=adapter)


def alone(prompt: list[int], adapter: LoRARequest | None, max_tokens: int = 5, **params: Any) -> list[list[int]]:
    engine = engine_with(1, num_blocks=200, max_num_batched_tokens=200, prefix_caching=False)
    add(engine, "r", prompt, adapter, max_tokens, **params)
    return tokens_of(finish(engine)["r"])


class Read:
    """Of an adapter that takes its time: it is read once it was let, or fails."""

    def __init__(self, loaded: LoadedAdapter) -> None:
        self.loaded, self.may_end, self.error = loaded, False, None

    def done(self) -> bool:
        return self.may_end

    def result(self) -> LoadedAdapter:
        if self.error is not None:
            raise self.error
        return self.loaded


class Host(NullExecutor):
    """Counts what it holds, and lets reads take their time."""

    def __init__(self, executor: NullExecutor, slow: bool = False) -> None:
        self.__dict__.update(vars(executor))
        self.held: Counter[str] = Counter()
        self.most, self.reads, self.slow = 0, dict[int, Read](), slow
        self.fails: type[Exception] | None = None

    def load_adapter(self, request: LoRARequest) -> Any:
        read = Read(super().load_adapter(request).result())
        read.may_end = not self.slow
        self.held[read.loaded.key] += 1
        self.most = max(self.most, self.held.total())
        self.reads[request.lora_int_id] = read
        return read

    def drop_adapter(self, key: str) -> None:
        assert self.held[key] > 0, "it is not held"
        self.held[key] -= 1

    def submit(self, step: StepInput) -> Any:
        assert all(self.held[key] > 0 for _, key in step.lora_loads), "a slot is filled from the host"
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error("it broke")
        return super().submit(step)


def watched(engine: Engine, slow: bool = False) -> Host:
    """The engine's executor from now on."""
    host = Host(engine.executor, slow)  # type: ignore[arg-type]
    engine.executor = engine._adapters._executor = host  # type: ignore[union-attr]
    return host


STEMS = st.sampled_from([[], [1] * 17, [1, 2] * 15])
PROMPTS = st.builds(lambda stem, tail: [*stem, *tail], STEMS, st.lists(st.integers(0, 2), min_size=1, max_size=30))
REQUESTS = st.tuples(
    PROMPTS, st.integers(0, 5), st.integers(1, 25), st.integers(0, 20), st.none() | st.integers(0, 40), st.sampled_from([1, 1, 2])
)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=12),
    max_loras=st.integers(1, 3),
    more_on_host=st.integers(0, 2),
    num_blocks=st.sampled_from([40, 60]),
    chunk=st.sampled_from([0, 7]),
    in_flight=st.integers(1, 3),
    policy=st.sampled_from(["fcfs", "sjf"]),
)
def test_every_request_has_its_own_adapter(
    requests: list[Any], max_loras: int, more_on_host: int, num_blocks: int, chunk: int, in_flight: int, policy: str
) -> None:
    """With preemption, prefixes that several share, aborts, forks. The mirror tells tokens by adapter, and refuses slots in use."""
    engine = engine_with(
        max_loras,
        max_loras + more_on_host,
        num_blocks=num_blocks,
        max_chunk_tokens=chunk,
        in_flight_steps=in_flight,
        policy=policy,
        max_num_seqs=4,
    )
    host = watched(engine)
    done: dict[str, RequestOutput] = {}
    step = 0
    while step <= 40 or engine.has_unfinished():
        for index, (prompt, number, max_tokens, start, stop, n) in enumerate(requests):
            if start == step:
                add(engine, str(index), prompt, lora(number) if number else None, max_tokens, n=n)
            if stop == step:
                done.update((output.request_id, output) for output in engine.abort([str(index)]))
        done.update((output.request_id, output) for output in engine.step())
        step += 1
        assert step < 3000, "the engine makes no progress"
    assert_idle(engine)
    assert host.most <= max_loras + more_on_host
    for index, (prompt, number, max_tokens, _, _, n) in enumerate(requests):
        if (found := done.get(str(index))) is None:
            continue  # it was aborted before it came
        expected = alone(prompt, lora(number) if number else None, max_tokens, n=n)
        for whole, completion in zip(expected, found.outputs):
            assert completion.finish_reason == "abort" or completion.token_ids == whole
            assert completion.token_ids == whole[: len(completion.token_ids)]


def test_a_thousand_adapters_through_four_slots() -> None:
    """Under load from all of them, most of it of one: none starves, and the host holds no more than it may."""
    engine = engine_with(4, 8, num_blocks=400, max_num_seqs=16)
    host = watched(engine)
    rng = random.Random(0)
    order = [*range(1, 1001), *([1] * 300)]
    rng.shuffle(order)
    waiting, ended, step = list(enumerate(order)), dict[int, int](), 0
    started: dict[int, int] = {}
    while waiting or engine.has_unfinished():
        while waiting and len(engine.processor.groups) < 60:
            index, number = waiting.pop(0)
            started[index] = step
            add(engine, str(index), [index % 7, 1, 2], lora(number), rng.randrange(1, 8))
        for output in engine.step():
            if output.finished:
                assert output.error is None
                ended[int(output.request_id)] = step
        step += 1
        assert engine._adapters is not None
        assert len(engine._adapters._known) <= 60 + 8
    assert len(ended) == len(order)
    assert host.most <= 8
    assert max(ended[index] - started[index] for index in ended) < 60 * 8, "each waits at most for those before it"
    assert_idle(engine)


def test_others_are_let_by_but_do_not_keep_a_slot_for_ever() -> None:
    engine = engine_with(1, max_num_seqs=4)
    add(engine, "first", [1], lora(1), 10)
    engine.step()
    add(engine, "other", [1], lora(2), 3)
    add(engine, "base", [1], None, 3)
    ends: list[str] = []
    for i in range(60):
        if i < 40:
            add(engine, f"again-{i}", [1], lora(1), 10)
        ends += [output.request_id for output in engine.step() if output.finished]
        if "other" in ends:
            break
    assert ends == ["base", "first", "other"], "base requests need no slot; nobody joined the first"
    finish(engine)


def test_a_request_whose_adapter_has_a_slot_passes_those_that_wait() -> None:
    engine = engine_with(2, max_num_seqs=8)
    for name, number, count in (("a", 1, 30), ("b", 2, 12), ("c", 3, 3), ("a2", 1, 3), ("b2", 2, 3)):
        add(engine, name, [1], lora(number), count)
    ends = []
    while engine.has_unfinished():
        ends += [output.request_id for output in engine.step() if output.finished]
    assert ends == ["a2", "b", "c", "b2", "a"], "c waits for b, which has less left than a; b2 came after c"


def test_reading_is_waited_for_without_holding_up_others() -> None:
    engine = engine_with(2)
    host = watched(engine, slow=True)
    add(engine, "adapted", [1, 2], lora(1))
    add(engine, "base", [1, 2], None)
    ends = []
    for _ in range(20):
        ends += [output.request_id for output in engine.step() if output.finished]
    assert ends == ["base"] and engine.is_waiting and engine.stats().num_not_ready == 1
    host.reads[1].may_end = True
    assert tokens_of(finish(engine)["adapted"]) == alone([1, 2], lora(1))


def test_who_waits_is_asked_again_only_when_something_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = engine_with(1, 40), list[str]()
    is_ready = Adapters.is_ready

    def counted(self: Adapters, request: Request) -> bool:
        asked.append(request.request_id)
        return is_ready(self, request)

    monkeypatch.setattr(Adapters, "is_ready", counted)
    for number in range(1, 31):
        add(engine, f"{number}", [number % 5] * 3, lora(number), max_tokens=12)
    for _ in range(3):
        engine.step()
    asked.clear()
    for _ in range(6):
        engine.step()
    assert not asked
    add(engine, "without", [1, 2], None, max_tokens=2)
    engine.step()
    assert engine.scheduler.num_running == 2  # it is let by at once
    engine.abort(["1"])
    outputs = finish(engine)
    assert all(outputs[f"{number}"].finished for number in range(2, 31))
    assert_idle(engine)


def test_what_cannot_be_read_ends_its_requests_and_no_others() -> None:
    engine = engine_with(2)
    host = watched(engine, slow=True)
    for name in ("a", "b"):
        add(engine, name, [1], lora(1))
    add(engine, "base", [1], None)
    engine.step()
    host.reads[1].error, host.reads[1].may_end = ValueError("rank 99 is more than 16"), True
    host.held.clear()  # nothing came of it
    found = finish(engine)
    assert [found[name].error for name in ("a", "b", "base")] == ["rank 99 is more than 16"] * 2 + [None]
    assert found["a"].refused and engine.list_loras() == set()
    host.slow = False
    add(engine, "a", [1], lora(1))
    assert finish(engine)["a"].error is None, "it is read again for who comes later"


def test_a_read_that_nobody_waits_for_any_more_leaves_room() -> None:
    engine = engine_with(1)
    host = watched(engine, slow=True)
    add(engine, "a", [1], lora(1))
    engine.step()
    engine.abort(["a"])
    host.reads[1].may_end, host.slow = True, False
    add(engine, "b", [1], lora(2))
    assert tokens_of(finish(engine)["b"]) == alone([1], lora(2))
    assert host.most == 1


def test_an_adapter_that_is_removed_while_it_is_read_is_not_read_again() -> None:
    engine = engine_with(1)
    host = watched(engine, slow=True)
    is_loaded = engine.start_lora(lora(1))
    assert not is_loaded() and engine.remove_lora(1)
    host.reads.pop(1).may_end = True
    assert is_loaded() and not host.reads and host.held.total() == 0 and engine.list_loras() == set()


def test_new_weights_in_place() -> None:
    """Requests that run go on with the old ones, and their blocks are not found by the new."""
    engine = engine_with(2, 3)
    prompt = [1, 2] * 10
    add(engine, "old", prompt, lora(1), 20)
    engine.step()
    add(engine, "new", prompt, lora(1, 1, inplace=True))
    found = finish(engine)
    assert tokens_of(found["old"]) == alone(prompt, lora(1), 20)
    assert tokens_of(found["new"]) == alone(prompt, lora(1, 1)) != [tokens_of(found["old"])[0][:5]]
    assert engine.list_loras() == {1}
    add(engine, "later", prompt, lora(1, 1))
    later = finish(engine)["later"]
    assert tokens_of(later) == tokens_of(found["new"])
    assert later.num_cached_tokens, "equal weights share blocks"


@pytest.mark.parametrize("error", [RuntimeError, DeviceLostError])
def test_slots_are_filled_again_after_a_step_failed(error: type[Exception]) -> None:
    engine = engine_with(2)
    host = watched(engine)
    engine.add_lora(lora(1))
    host.fails = error
    add(engine, "a", [1], lora(1))
    assert "it broke" in str(finish(engine)["a"].error)
    if error is DeviceLostError:
        return
    add(engine, "a", [1], lora(1))
    assert tokens_of(finish(engine)["a"]) == alone([1], lora(1))


def test_the_requests_of_a_slot_end_with_the_step_that_was_to_fill_it() -> None:
    """Steps after it are in flight already."""
    engine = engine_with(1, in_flight_steps=3)
    host = watched(engine)
    submit, steps = host.submit, []

    class Failing:
        def result(self) -> Any:
            raise RuntimeError("a slot could not be filled")

    def failing(step: StepInput) -> Any:
        steps.append(step)
        handle = submit(step)
        return Failing() if len(steps) == 1 else handle

    host.submit = failing  # type: ignore[method-assign]
    add(engine, "a", [1] * 70, lora(1))  # in two chunks
    add(engine, "b", [1], lora(1))
    found = finish(engine)
    assert "could not be filled" in str(found["a"].error) and "could not be filled" in str(found["b"].error)
    add(engine, "c", [1], lora(1))
    assert tokens_of(finish(engine)["c"]) == alone([1], lora(1))
    assert [len(step.lora_loads) for step in steps].count(1) == 2
    assert_idle(engine)


def test_methods() -> None:
    engine = engine_with(2, 2)
    host = watched(engine)
    assert engine.add_lora(lora(1)) and engine.add_lora(lora(2))
    assert engine.list_loras() == {1, 2}
    engine.add_lora(lora(3))
    assert engine.list_loras() == {2, 3}, "the one unused for longest goes"
    assert engine.pin_lora(2)
    engine.add_lora(lora(4))
    assert engine.list_loras() == {2, 4}
    add(engine, "a", [1], lora(4))
    with pytest.raises(ValueError, match=r"'adapter-4'.*cannot be removed: 1 requests use it"):
        engine.remove_lora(4)
    with pytest.raises(ValueError, match=r"'adapter-4'.*cannot be served: .*'other'|'other'.*cannot be served.*'adapter-4'"):
        add(engine, "b", [1], LoRARequest("other", 4, "/x"))
    with pytest.raises(ValueError, match=r"name and an id of its own"):
        add(engine, "b", [1], LoRARequest("adapter-4", 5, "/x"))
    with pytest.raises(ValueError, match=r"id 9 cannot be pinned: it is not loaded"):
        engine.pin_lora(9)
    engine.step()
    with pytest.raises(ValueError, match=r"'adapter-5'.*cannot be loaded: all 2 adapters .*max_cpu_loras"):
        engine.add_lora(lora(5))
    finish(engine)
    assert engine.pin_lora(4)
    with pytest.raises(ValueError, match=r"all 2 slots are pinned"):
        add(engine, "b", [1], lora(5))
    assert engine.remove_lora(4) and not engine.remove_lora(4)
    add(engine, "b", [1], lora(5))
    finish(engine)
    assert host.held.total() == 2


def test_equal_adapters_are_held_once() -> None:
    engine = engine_with(1, 2)
    host = watched(engine)
    twin = LoRARequest("twin", 8, lora(1).lora_path)
    engine.add_lora(lora(1))
    engine.add_lora(twin)
    add(engine, "a", [1, 2], lora(1))
    add(engine, "b", [1, 2], twin)
    found = finish(engine)
    assert tokens_of(found["a"]) == tokens_of(found["b"]) == alone([1, 2], lora(1))
    assert host.held.total() == 1 and engine.list_loras() == {1, 8}
    assert engine.remove_lora(1) and engine.list_loras() == {8} and host.held.total() == 1
    assert engine.remove_lora(8) and host.held.total() == 0


def test_the_last_slot_is_not_pinned_under_those_that_wait() -> None:
    engine = engine_with(1, 2)
    engine.add_lora(lora(1))
    add(engine, "a", [1], lora(2))
    with pytest.raises(ValueError, match=r"cannot be pinned: of 1 slots 0 are, and the rest is needed"):
        engine.pin_lora(1)
    assert finish(engine)["a"].error is None
    assert engine.pin_lora(1)


def test_what_was_used_last_stays_on_the_host() -> None:
    for use in ("request", "load"):
        engine = engine_with(2, 2)
        engine.add_lora(lora(1))
        engine.add_lora(lora(2))
        if use == "load":
            engine.add_lora(lora(1))
        else:
            add(engine, "a", [1], lora(1))
            finish(engine)
        engine.add_lora(lora(3))
        assert engine.list_loras() == {1, 3}, use


def test_who_waits_for_a_slot_is_read_once() -> None:
    """Others who wait do not take its place on the host."""
    engine = engine_with(1, 2)
    host, reads = watched(engine), list[int]()
    load = host.load_adapter

    def counted(request: LoRARequest) -> Any:
        reads.append(request.lora_int_id)
        return load(request)

    host.load_adapter = counted  # type: ignore[method-assign]
    for number in (1, 2, 3):
        add(engine, str(number), [1], lora(number), 12)
    finish(engine)
    assert sorted(reads) == [1, 2, 3]


def test_a_read_that_failed_is_tried_again() -> None:
    """Also while a request waits that has not heard of it."""
    engine = engine_with(1, max_num_seqs=1)
    host = watched(engine, slow=True)
    add(engine, "base", [1], None, 12)
    engine.step()
    add(engine, "a", [1], lora(1))
    is_loaded = engine.start_lora(lora(1))
    host.reads[1].error, host.reads[1].may_end = ValueError("no such file"), True
    host.held.clear()  # nothing came of it
    with pytest.raises(ValueError, match="no such file"):
        is_loaded()
    host.slow = False
    assert engine.add_lora(lora(1)) and engine.list_loras() == {1}
    assert finish(engine)["base"].error is None


def test_a_pin_outlives_new_weights_in_place() -> None:
    engine = engine_with(2, 2)
    engine.add_lora(lora(1))
    assert engine.pin_lora(1) and engine.pin_lora(1)
    engine.add_lora(lora(1, 1, inplace=True))
    for number in (2, 3, 4):
        engine.add_lora(lora(number))
    assert engine.list_loras() == {1, 4}
    assert engine.pin_lora(4) and engine.pin_lora(1), "it is pinned already"


def test_slots_are_free_when_all_requests_were_ended() -> None:
    engine = engine_with(1)

    def broken(now_s: float) -> Any:
        raise RuntimeError("it broke")

    add(engine, "a", [1], lora(1), 20)
    engine.step()
    engine.scheduler.schedule = broken  # type: ignore[method-assign, assignment]
    assert "it broke" in str(finish(engine)["a"].error)
    add(engine, "b", [1], lora(2))
    assert tokens_of(finish(engine)["b"]) == alone([1], lora(2))


def test_a_pinned_adapter_keeps_its_slot() -> None:
    engine = engine_with(2, 4)
    host, filled = watched(engine), list[int]()
    submit = host.submit

    def watching(step: StepInput) -> Any:
        filled.extend(slot for slot, _ in step.lora_loads)
        return submit(step)

    host.submit = watching  # type: ignore[method-assign]
    for number in (1, 2, 3):
        add(engine, "a", [1], lora(number))
        finish(engine)
        if number == 1:
            engine.pin_lora(1)
    assert filled == [0, 1, 1]


def test_an_engine_without_adapters_refuses_them() -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match=r"asks for the adapter 'adapter-1'.*enable_lora=True"):
        add(engine, "a", [1], lora(1))
    with pytest.raises(ValueError, match=r"takes no adapters: build it with enable_lora=True"):
        engine.list_loras()
    with pytest.raises(ValueError, match=r"must be a LoRARequest.*found 'x'"):
        add(engine_with(), "a", [1], "x")  # type: ignore[arg-type]
