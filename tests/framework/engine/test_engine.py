"""The engine on the verifying null executor: whatever the batch, every request gets the tokens that it gets alone."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.engine.engine import EngineStats
from framework.engine.kv_cache.prefix import ExtraKeys
from framework.engine.policies import POLICIES
from framework.engine.prompts import EngineInput
from framework.engine.speculation import Speculation
from framework.engine.step import NewRequest, StepInput
from framework.executor.mirror import Mirror
from framework.executor.null import NullExecutor
from framework.sampling_params import RequestOutputKind, SamplingParams
from framework.speculation.depth import AdaptiveDepth, ScheduledDepth

from ..engines import MODELS, assert_idle, finish, make_config, make_engine, token_params, tokens_of


@dataclass
class Wanted:
    """A request of a random mix; it arrives before step ``step`` and is aborted before step ``abort`` if that is not None."""

    prompt: list[int]
    params: SamplingParams
    step: int
    priority: int
    abort: int | None = None
    tokens: list[list[int]] = field(default_factory=list)


def prompts() -> st.SearchStrategy[list[int]]:
    """Of few different tokens, so that prefixes are shared; up to 60 long."""
    stem = st.sampled_from([[], [1] * 17, [1, 2] * 15])
    return st.builds(lambda stem, tail: [*stem, *tail], stem, st.lists(st.integers(0, 2), min_size=1, max_size=30))


def params() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        token_params,
        n=st.sampled_from([1, 1, 1, 2, 3]),
        max_tokens=st.integers(1, 30),
        stop_token_ids=st.sampled_from([[], [], [3], [5, 8]]),
        seed=st.integers(0, 1000),
    )


def wanted() -> st.SearchStrategy[Wanted]:
    return st.builds(Wanted, prompts(), params(), st.integers(0, 20), st.integers(0, 2), st.none() | st.integers(0, 40))


def alone(request: Wanted) -> list[list[int]]:
    engine = make_engine(make_config(num_blocks=200, max_num_batched_tokens=200, prefix_caching=False), vocab_size=20)
    engine.add_request("r", EngineInput(request.prompt), copy.copy(request.params))
    return tokens_of(finish(engine)["r"])


class Guesses:
    """Proposes any number of tokens. Which of them are right is the mirror's to say."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys) -> None: ...

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        return [0] * self._random.randrange(most + 1)

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None: ...


def speculation(num_drafts: int, from_host: bool, max_model_len: int | None = None) -> Speculation:
    """Of another depth for each number of requests, none among them."""
    rows = [[1, 1, num_drafts], [2, 2, 0], [3, 4, 1], [5, 6, num_drafts], [7, 7, 0]]
    return Speculation(ScheduledDepth(rows), 20, Guesses() if from_host else None, max_model_len)  # type: ignore[arg-type]


def serve(
    requests: list[Wanted], model: str, num_blocks: int = 60, num_drafts: int = 0, by: Speculation | None = None, **config: object
) -> EngineStats:
    """Serves a mix; checks tokens against those of each request alone."""
    engine = make_engine(make_config(num_blocks=num_blocks, **config), model, 20, num_drafts=num_drafts, speculation=by)
    served, step = {}, 0
    while step <= 40 or engine.has_unfinished():
        for index, request in enumerate(requests):
            if request.step == step:
                engine.add_request(str(index), EngineInput(request.prompt), copy.copy(request.params), priority=request.priority)
            if request.abort == step:
                served.update((output.request_id, output) for output in engine.abort([str(index)]))
        served.update((output.request_id, output) for output in engine.step())
        step += 1
        assert step < 3000, "the engine makes no progress"
    assert_idle(engine)
    for index, request in enumerate(requests):
        if request.abort is not None and request.abort < request.step:
            request.abort = None  # it was not there yet
        expected, found = alone(request), served[str(index)]
        assert found.finished and len(found.outputs) == request.params.n
        for whole, completion in zip(expected, found.outputs):
            if completion.finish_reason == "abort":
                assert request.abort is not None and completion.token_ids == whole[: len(completion.token_ids)]
            else:
                assert completion.token_ids == whole
    return engine.stats()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    requests=st.lists(wanted(), min_size=1, max_size=10),
    model=st.sampled_from(list(MODELS)),
    policy=st.sampled_from(list(POLICIES)),
    block_size=st.sampled_from([1, 3, 4, 16]),
    budget=st.sampled_from([7, 16, 64]),
    chunk=st.sampled_from([0, 5]),
    depth=st.sampled_from([1, 2, 3]),
    seats=st.sampled_from([2, 16]),
    prefix_caching=st.booleans(),
    num_drafts=st.sampled_from([0, 1, 4]),
    who=st.sampled_from(["device", "device by schedule", "short device", "host"]),
    spare=st.sampled_from([0, 5, 200]),
)
def test_a_mix_gets_the_tokens_of_each_alone(
    requests: list[Wanted],
    model: str,
    policy: str,
    block_size: int,
    budget: int,
    chunk: int,
    depth: int,
    seats: int,
    prefix_caching: bool,
    num_drafts: int,
    who: str,
    spare: int,
) -> None:
    longest = max(len(request.prompt) + (request.params.max_tokens or 0) for request in requests)
    per_group = -(-longest // block_size) + (-(-budget * depth // block_size) + 2) * (model != "full")
    serve(
        requests,
        model,
        policy=policy,
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_chunk_tokens=chunk,
        in_flight_steps=depth,
        max_num_seqs=seats,
        prefix_caching=prefix_caching,
        num_drafts=num_drafts,
        by=speculation(num_drafts, who == "host", 30 if who == "short device" else None)
        if num_drafts and who != "device"
        else None,
        num_blocks=2 + per_group * len(MODELS[model]) + spare,
    )


def long_mix(num_requests: int = 10) -> list[Wanted]:
    return [Wanted([1, 2] * 12 + [i % 3] * (1 + i), token_params(max_tokens=25, seed=i), i // 3, -i) for i in range(num_requests)]


@pytest.mark.parametrize("model", ["full", "hybrid"])
@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("depth", [1, 2])
def test_preemption_changes_no_token(model: str, policy: str, depth: int) -> None:
    blocks = {"full": 30, "hybrid": 60}[model]
    stats = serve(
        long_mix(), model, num_blocks=blocks, max_num_batched_tokens=16, policy=policy, in_flight_steps=depth, prefix_caching=False
    )
    assert stats.num_preemptions > 0


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("depth", [1, 2])
def test_guesses_change_no_token_and_save_steps(model: str, depth: int) -> None:
    num_steps = [
        serve(long_mix(), model, num_blocks=300, in_flight_steps=depth, num_drafts=num_drafts).num_steps for num_drafts in (0, 3)
    ]
    assert num_steps[1] < 0.7 * num_steps[0]


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("in_flight_steps", [1, 2, 3])
@pytest.mark.parametrize("model", ["windowed", "hybrid"])
def test_who_has_all_blocks_that_it_was_said_to_need_is_never_preempted(model: str, in_flight_steps: int, num_drafts: int) -> None:
    """A request that is alone would preempt itself, again and again."""
    for block_size, budget, num_prompt in itertools.product((2, 16), (1, 2, 5), (1, 54)):
        scheduler = {"max_num_batched_tokens": budget, "max_num_seqs": 1, "in_flight_steps": in_flight_steps}
        config = make_config(block_size=block_size, **scheduler)
        config.cache.num_blocks = 1 + make_engine(config, model).scheduler.limits.most_blocks(56)
        engine = make_engine(config, model, num_drafts=num_drafts)
        engine.add_request("r", EngineInput([1] * num_prompt), token_params(max_tokens=57 - num_prompt, ignore_eos=True))
        for _ in range(150):
            engine.step()
        assert_idle(engine)
        assert not engine.stats().num_preemptions


def test_a_proposer_of_the_host_hears_how_each_request_ended() -> None:
    started: dict[str, tuple[list[int], ExtraKeys]] = {}
    ended: list[tuple[str, list[int]]] = []

    class Hearing(Guesses):
        def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys) -> None:
            started[request_id] = list(prompt_token_ids), extra_keys

        def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
            ended.append((request_id, list(token_ids)))

    engine = make_engine(vocab_size=20, speculation=Speculation(ScheduledDepth([[1, 1, 3]]), 20, Hearing()))  # type: ignore[arg-type]
    prompts = {"whole": [1, 2, 3], "short": [4, 5], "gone": [6]}
    for name, prompt in prompts.items():
        params = token_params(max_tokens=12 if name == "whole" else 1, seed=len(prompt))
        engine.add_request(name, EngineInput(prompt, cache_salt=name), params)
    engine.abort(["gone"])
    outputs = finish(engine)
    texts = {name: prompts[name] + (tokens_of(outputs[name])[0] if name in outputs else []) for name in prompts}
    assert started == {f"0_{name}": (prompt, ((0, f"salt:{name}".encode()),)) for name, prompt in prompts.items()}
    assert sorted(ended) == sorted((f"0_{name}", text) for name, text in texts.items())


def test_a_proposer_of_the_host_hears_of_requests_that_ended_because_the_engine_started_over() -> None:
    ended: list[str] = []

    class Hearing(Guesses):
        def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
            ended.append(request_id)

    engine = make_engine(vocab_size=20, speculation=Speculation(ScheduledDepth([[1, 1, 3]]), 20, Hearing()))  # type: ignore[arg-type]
    for name in ("one", "other"):
        engine.add_request(name, EngineInput([1, 2, 3]), token_params(max_tokens=9, n=2))
    engine.step()
    engine.scheduler.commit = lambda output: 1 / 0  # type: ignore[assignment, method-assign]
    outputs = finish(engine)
    assert all(output.error is not None for output in outputs.values())
    assert sorted(ended) == ["0_one", "0_other", "1_one", "1_other"]


@pytest.mark.parametrize("from_host", [False, True])
def test_drafts_count_against_the_budget_and_stand_before_prompts(from_host: bool) -> None:
    by = Speculation(ScheduledDepth([[1, 1, 3]]), 20, Guesses() if from_host else None)  # type: ignore[arg-type]
    engine = make_engine(make_config(max_num_batched_tokens=7), vocab_size=20, num_drafts=3, speculation=by)
    steps: list[StepInput] = []
    submit = engine.executor.submit
    engine.executor.submit = lambda step: steps.append(step) or submit(step)  # type: ignore[method-assign,assignment,func-returns-value]
    for i in range(4):
        engine.add_request(str(i), EngineInput([i] * (1 + 5 * i)), token_params(max_tokens=20, seed=i))
    assert all(len(tokens_of(output)[0]) == 20 for output in finish(engine).values())
    assert max(sum(step.num_tokens) for step in steps) == 7
    single, drafts, prompt = range(3)
    kinds = [
        [single if n == 1 else drafts if wanted > 1 else prompt for n, wanted in zip(step.num_tokens, step.num_logits)]
        for step in steps
    ]
    assert all(kind == sorted(kind) for kind in kinds) and any({drafts, prompt} <= set(kind) for kind in kinds)


@pytest.mark.parametrize("from_host", [False, True])
def test_a_depth_that_adapts_changes_no_token(from_host: bool) -> None:
    """Also where steps compute parts of prompts only, and no row gets a token, and by a clock that stands still."""
    by = Speculation(AdaptiveDepth(4), 20, Guesses() if from_host else None)  # type: ignore[arg-type]
    stats = serve(long_mix(), "full", num_blocks=300, num_drafts=4, by=by, max_num_batched_tokens=7)
    assert stats.num_chunked_prefills


@pytest.mark.parametrize("from_host", [False, True])
def test_a_step_without_drafts_does_not_wait_for_the_one_before(from_host: bool) -> None:
    """Whatever the depth may be: a second step is always under way. With drafts of the host there cannot be one."""
    for depth, most in ((0, 2), (3, 1 if from_host else 2)):
        by = Speculation(ScheduledDepth([[1, 1, depth]]), 20, Guesses() if from_host else None)  # type: ignore[arg-type]
        engine = make_engine(make_config(in_flight_steps=2), vocab_size=20, num_drafts=3, speculation=by)
        engine.add_request("r", EngineInput([1, 2, 3]), token_params(max_tokens=40))
        engine.step()
        lengths = []
        for _ in range(6):
            engine._submit()
            lengths.append(len(engine.in_flight))
            engine.step()
        assert set(lengths) == {most}
        assert len(tokens_of(finish(engine)["r"])[0]) == 40
        assert_idle(engine)


@pytest.mark.parametrize("in_flight_steps", [1, 2])
@pytest.mark.parametrize("from_host", [False, True])
def test_guesses_do_not_reach_beyond_the_longest_sequence(from_host: bool, in_flight_steps: int) -> None:
    by = Speculation(ScheduledDepth([[1, 1, 4]]), 20, Guesses() if from_host else None)  # type: ignore[arg-type]
    config = make_config(in_flight_steps=in_flight_steps)
    engine = make_engine(config, vocab_size=20, max_model_len=40, num_drafts=4, speculation=by)
    ends = {str(i): [1] * i for i in (1, 20, 38, 39)}
    for name, prompt in ends.items():
        engine.add_request(name, EngineInput(prompt), token_params(max_tokens=None, seed=3))
    outputs = finish(engine)
    assert all(len(prompt) + len(tokens_of(outputs[name])[0]) == 40 for name, prompt in ends.items())
    assert_idle(engine)


def test_guesses_without_a_mirror_change_no_token() -> None:
    config = make_config()
    config.cache.check_invariants = False
    tokens = []
    for num_drafts in (0, 3):
        engine = make_engine(config, num_drafts=num_drafts)
        for i in range(5):
            engine.add_request(str(i), EngineInput([1, 2, 3] * i + [4]), token_params(max_tokens=17, seed=i, n=1 + i % 2))
        outputs = finish(engine)
        tokens.append([tokens_of(outputs[str(i)]) for i in range(5)])
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("model", list(MODELS))
def test_chunks_and_prefix_hits_change_no_token(model: str) -> None:
    stats = serve(long_mix(), model, num_blocks=300, max_num_batched_tokens=16, max_chunk_tokens=7)
    assert stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0 and stats.num_preemptions == 0
    assert stats.prefix_query_tokens == stats.num_prompt_tokens == sum(len(request.prompt) for request in long_mix())


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_completions_to_one_prompt_share_its_blocks(prefix_caching: bool) -> None:
    engine = make_engine(make_config(prefix_caching=prefix_caching))
    engine.add_request("r", EngineInput([1] * 18), token_params(n=4, max_tokens=5, seed=3))
    engine.step()
    engine.step()
    assert engine.stats().num_forks == 3
    assert engine.manager.pool.num_free == 99 - (4 + 4 * 1), "four full blocks together, the partial one each"
    output = finish(engine)["r"]
    assert len({tuple(tokens) for tokens in tokens_of(output)}) == 4
    assert_idle(engine)


def test_completion_i_samples_with_seed_plus_i() -> None:
    together, apart = make_engine(), make_engine()
    together.add_request("r", EngineInput([1, 2, 3]), token_params(n=3, max_tokens=6, seed=8))
    for i in range(3):
        apart.add_request(str(i), EngineInput([1, 2, 3]), token_params(max_tokens=6, seed=8 + i))
    separate = finish(apart)
    assert tokens_of(finish(together)["r"]) == [tokens_of(separate[str(i)])[0] for i in range(3)]


def test_seeds_are_derived_from_the_engines_seed_and_the_order_of_requests() -> None:
    def run(seed: int) -> list[list[int]]:
        config = make_config()
        config.seed = seed
        engine = make_engine(config)
        for i in range(3):
            engine.add_request(str(i), EngineInput([1, 2]), token_params(seed=None, max_tokens=8))
        return [tokens_of(output)[0] for output in finish(engine).values()]

    first = run(0)
    assert run(0) == first and run(1) != first and len({tuple(tokens) for tokens in first}) == 3


@pytest.mark.parametrize(("configured", "depth"), [(0, 3), (1, 1), (2, 2)])
def test_the_executor_says_how_many_steps_are_in_flight_unless_the_config_does(
    configured: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NullExecutor, "in_flight_steps", 3)
    engine = make_engine(make_config(in_flight_steps=configured))
    submitted: list[Any] = []
    submit = engine.executor.submit
    monkeypatch.setattr(engine.executor, "submit", lambda step: submitted.append(step) or submit(step))
    engine.add_request("a", EngineInput([1, 2]), token_params(max_tokens=8))
    engine.step()
    assert len(submitted) == depth


def test_aborting_ends_a_request_wherever_it_is() -> None:
    engine = make_engine(make_config(max_num_seqs=1, in_flight_steps=2))
    for name in ("running", "waiting", "group"):
        engine.add_request(name, EngineInput([1] * 5), token_params(max_tokens=50, n=2 if name == "group" else 1))
    engine.step()
    running, waiting, group = engine.abort(["running", "waiting", "nobody", "group"])
    assert [output.finished for output in (running, waiting, group)] == [True] * 3
    assert {completion.finish_reason for output in (running, waiting, group) for completion in output.outputs} == {"abort"}
    assert len(running.outputs[0].token_ids) == 1 and waiting.outputs[0].token_ids == [] and len(group.outputs) == 2
    assert finish(engine) == {}
    assert_idle(engine)
    engine.add_request("running", EngineInput([1]), token_params())
    assert finish(engine)["running"].finished, "its id is free again"


def test_what_can_never_be_served_is_refused_and_leaves_nothing() -> None:
    engine = make_engine(make_config(num_blocks=5), max_model_len=60)
    engine.add_request("a", EngineInput([1]), token_params())
    cases = [
        ("a", [1], token_params(), "must be unique"),
        ("b", [], token_params(), "empty"),
        ("b", [1, 50], token_params(), "token id 50"),
        ("b", [1] * 60, token_params(), "at most 60"),
        ("b", [1] * 17, token_params(max_tokens=4), "needs up to 5 KV blocks"),
        ("b", [1], token_params(allowed_token_ids=[77]), "allowed_token_ids holds token id 77"),
        ("b", [1], SamplingParams(stop="x"), "needs a tokenizer"),
    ]
    for request_id, prompt, bad, message in cases:
        with pytest.raises(ValueError, match=message):
            engine.add_request(request_id, EngineInput(prompt), bad)
    assert list(finish(engine)) == ["a"]
    assert_idle(engine)


def test_the_callers_parameters_stay_as_they_were() -> None:
    engine, given = make_engine(), token_params(seed=None)
    before = copy.deepcopy(given)
    engine.add_request("r", EngineInput([1]), given)
    assert given == before


def test_no_two_completions_have_the_same_name() -> None:
    engine = make_engine()
    for name, n in (("a", 3), ("0_a", 1), ("1_a", 2), ("1_0_a", 1)):
        engine.add_request(name, EngineInput([1] * 4), token_params(max_tokens=3, n=n, temperature=1.0))
    requests = engine.scheduler.requests
    assert len({request.request_id for request in requests}) == len(requests) == 7
    finish(engine)


def test_a_request_that_is_not_ready_lets_others_by_and_keeps_its_place() -> None:
    engine = make_engine(make_config(max_num_seqs=2, prefix_caching=False))
    for name in "abcde":
        engine.add_request(name, EngineInput([1] * 4), token_params(max_tokens=3))
    requests = {group.request_id: group.samples[0].request for group in engine.processor.groups.values()}
    ready: set[str] = set("cde")
    for name in "ab":
        requests[name].is_ready = lambda name=name: name in ready
    order: list[str] = []
    submit = engine.executor.submit
    engine.executor.submit = lambda step: order.extend(new.request_id for new in step.new) or submit(step)  # type: ignore[method-assign,assignment]
    engine.step()
    assert order == ["0_c", "0_d"] and engine.stats().num_waiting == 3
    ready.add("b")
    while len(order) < 4:
        engine.step()
    assert order == ["0_c", "0_d", "0_b", "0_e"], "ready ones in the order in which they came"
    while engine.stats().num_running:
        engine.step()
    assert engine.step() == [] and engine.has_unfinished(), "nothing to do but to wait"
    ready.add("a")
    assert len(tokens_of(finish(engine)["a"])[0]) == 3
    assert_idle(engine)


def test_a_request_that_does_not_fit_holds_up_those_behind_it() -> None:
    engine = make_engine(make_config(num_blocks=9, prefix_caching=False))
    for name, length in (("small", 8), ("big", 28), ("behind", 4)):
        engine.add_request(name, EngineInput([1] * length), token_params(max_tokens=3))
    requests = {group.request_id: group.samples[0].request for group in engine.processor.groups.values()}
    engine.step()
    assert {name for name, request in requests.items() if request.seat >= 0} == {"small"}
    requests["big"].is_ready = lambda: False
    engine.step()
    assert {name for name, request in requests.items() if request.seat >= 0} == {"small", "behind"}


def test_a_readiness_that_fails_ends_its_request_alone() -> None:
    engine = make_engine()
    for name in "ab":
        engine.add_request(name, EngineInput([1] * 4), token_params(max_tokens=3))

    def broken() -> bool:
        raise ValueError("the grammar does not compile")

    engine.processor.groups["a"].samples[0].request.is_ready = broken
    outputs = finish(engine)
    assert outputs["a"].error == "the grammar does not compile" and outputs["a"].refused and len(tokens_of(outputs["b"])[0]) == 3
    assert_idle(engine)


def test_requests_aborted_while_they_wait_leave_nothing() -> None:
    engine = make_engine(make_config(max_num_seqs=1))
    names = [str(i) for i in range(3000)]
    for name in names:
        engine.add_request(name, EngineInput([1]), token_params(n=2))
    engine.step()
    assert len(engine.abort(names)) == 3000
    assert not len(engine.scheduler.waiting) and not engine.scheduler.requests


def test_times_and_counts_of_a_request() -> None:
    engine = make_engine()
    engine.add_request("r", EngineInput([1, 2, 3]), token_params(max_tokens=2), arrival_s=-1.0)
    clock = engine.clock
    clock.advance_to(2.0)
    engine.step()
    clock.advance_to(5.0)
    (output,) = engine.step()
    metrics = output.metrics
    assert metrics is not None
    assert (metrics.arrival_s, metrics.first_scheduled_s, metrics.first_token_s, metrics.last_token_s) == (-1.0, 2.0, 2.0, 5.0)
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_output_tokens, stats.num_steps, stats.kv_usage) == (3, 2, 2, 0.0)


def test_cached_tokens_are_reported() -> None:
    engine = make_engine()
    for name in ("first", "second"):
        engine.add_request(name, EngineInput([1] * 13), token_params(max_tokens=1))
        output = finish(engine)[name]
    assert output.num_cached_tokens == 12 and engine.stats().prefix_hit_tokens == 12
    engine.add_request("salted", EngineInput([1] * 13, None, "salt"), token_params(max_tokens=1))
    assert finish(engine)["salted"].num_cached_tokens == 0
    assert engine.reset_prefix_cache()
    engine.add_request("third", EngineInput([1] * 13), token_params(max_tokens=1))
    assert finish(engine)["third"].num_cached_tokens == 0


def test_generated_blocks_are_found_by_the_next_turn_of_a_conversation() -> None:
    engine = make_engine()
    engine.add_request("first", EngineInput([1] * 6), token_params(max_tokens=12))
    turn = [1] * 6 + tokens_of(finish(engine)["first"])[0]
    engine.add_request("second", EngineInput([*turn, 2, 3]), token_params(max_tokens=1))
    assert finish(engine)["second"].num_cached_tokens == 16, "of the first 17 tokens, whose last was never computed"


def test_decodes_give_back_what_leaves_the_window() -> None:
    engine = make_engine(make_config(prefix_caching=False), "windowed")
    engine.add_request("r", EngineInput([1] * 6), token_params(max_tokens=60))
    for _ in range(50):
        engine.step()
        assert 99 - engine.manager.pool.num_free <= 4


def test_deltas_add_up_and_final_only_comes_once() -> None:
    engine = make_engine()
    kinds = {kind.name: kind for kind in RequestOutputKind}
    for name, kind in kinds.items():
        engine.add_request(name, EngineInput([1, 2]), token_params(max_tokens=6, n=2, output_kind=kind))
    collected: dict[str, list] = {name: [] for name in kinds}
    while engine.has_unfinished():
        for output in engine.step():
            collected[output.request_id].append(output)
    last = {name: tokens_of(outputs[-1]) for name, outputs in collected.items()}
    assert len(collected["FINAL_ONLY"]) == 1 and last["FINAL_ONLY"] == last["CUMULATIVE"]
    sums: list[list[int]] = [[], []]
    for output in collected["DELTA"]:
        for completion in output.outputs:
            sums[completion.index] += completion.token_ids
    assert sums == last["CUMULATIVE"]
    for outputs in collected.values():
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def new_request(blocks: list[int], computed: int = 0) -> NewRequest:
    params = token_params()
    return NewRequest(0, "r", [1, 2, 3], 3, computed, [blocks], params)


@pytest.mark.parametrize(
    ("message", "step"),
    [
        ("has no block", StepInput(0, [0], [3], [1], [new_request([1])])),
        ("null block", StepInput(0, [0], [3], [1], [new_request([0, 1])])),
        ("does not hold", StepInput(0, [0], [1], [1], [new_request([1, 2], computed=2)])),
        ("not known", StepInput(0, [0], [4], [1], [new_request([1, 2])])),
        ("samples exactly", StepInput(0, [0], [2], [1], [new_request([1, 2])])),
        ("not in use", StepInput(0, [1], [1], [1], [new_request([1, 2])])),
        ("one token come first", StepInput(0, [0, 1], [3, 1], [1, 1], [new_request([1, 2])])),
        ("numbered", StepInput(-1, [0], [3], [1], [new_request([1, 2])])),
    ],
)
def test_the_mirror_notices_a_broken_protocol(message: str, step: StepInput) -> None:
    mirror = Mirror(2, 5, 2, 20, MODELS["full"])
    with pytest.raises(AssertionError, match=message):
        mirror.apply(step)


def test_drafts_need_no_more_blocks_than_the_request_may_have() -> None:
    engine = make_engine(make_config(num_blocks=1 + 6, block_size=1), vocab_size=20, num_drafts=3)
    engine.add_request("r", EngineInput([1]), token_params(max_tokens=6))
    for _ in range(12):
        engine.step()
    assert_idle(engine)
    assert engine.stats().num_preemptions == 0
