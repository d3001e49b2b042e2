"""The rows of recurrent layers' states: whose they are, what they take, and what cannot be done with them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ExecutorConfig, GraphConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.step import StepInput
from framework.speculation.config import SpeculativeConfig
from framework.worker.local_executor import LocalExecutor

from ..engines import finish

JAMBA: dict[str, Any] = {
    "model_type": "jamba",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 4,
    "mamba_d_state": 8,
    "max_position_embeddings": 96,
}
MAMBA2: dict[str, Any] = {
    "model_type": "mamba2",
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 16,
    "n_groups": 2,
    "state_size": 8,
    "max_position_embeddings": 96,
}
DELTA: dict[str, Any] = {
    "model_type": "qwen3_next",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_experts": 0,
    "max_position_embeddings": 96,
}
BYTES = {"jamba": 2 * 64 * (3 + 8) * 4, "mamba2": 2 * (3 * 96 + 4 * 16 * 8) * 4}
"""Of a request's states."""


def config(architecture: dict[str, Any], **sections: Any) -> EngineConfig:
    model = ModelConfig("made up", dtype="float32", load_format="dummy", architecture=architecture)
    cache = sections.pop("cache", CacheConfig(4, num_blocks=200))
    cache.check_invariants = True
    return EngineConfig(model, cache, num_threads=1, **sections)


def executor_of(engine: Engine) -> LocalExecutor:
    assert isinstance(engine.executor, LocalExecutor)
    return engine.executor


class Guard:
    """Fills rows with NaN when they lose their request, and before a request gets them; sees that steps touch no others."""

    def __init__(self, engine: Engine) -> None:
        runner = executor_of(engine)._runner
        self._tensors = [tensor for of_layer in runner._batches.states.values() for tensor in of_layer]
        self._step, runner_step = runner.step, runner.step
        self.num_admitted = self.num_snapshots = 0
        for tensor in self._tensors:
            tensor.fill_(torch.nan)

        def step(found: StepInput) -> Any:
            self.num_admitted += len(found.new)
            lost = [*found.released, *(request.seat for request in found.new)]
            for tensor in self._tensors:
                tensor[lost] = torch.nan
            before = [tensor.clone() for tensor in self._tensors]
            handle = runner_step(found)
            written = [*found.seats, *(runner._num_seats + snapshot for _, snapshot in found.snapshots)]
            idle = [row for row in range(len(before[0])) if row not in written]
            for tensor, old in zip(self._tensors, before):
                assert torch.equal(tensor[idle].view(torch.int32), old[idle].view(torch.int32)), "a row of nobody's was written"
                assert not tensor[written].isnan().any(), "a row was read before it was written"
            self.num_snapshots += len(found.snapshots)
            return handle

        executor_of(engine)._step = step


def check_rows(architecture: dict[str, Any], num_requests: int, seed: int, num_snapshots: int = 0) -> tuple[int, int, int]:
    """Requests that come, are preempted and aborted at random; the others say what they say alone. Returns how many admissions,
    preemptions and aborts there were. num_snapshots: more than 0 = some start from states that were kept."""
    rng = random.Random(seed)
    kernels = {"default": "reference"}
    few = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=7, in_flight_steps=2)
    cache = CacheConfig(2, num_blocks=14, state_snapshots=num_snapshots)
    running = build_engine(config(architecture, cache=cache, scheduler=few, kernels=kernels))
    guard, alone = Guard(running), build_engine(config(architecture, kernels=kernels))
    jobs = [rng.choices(range(512), k=rng.randrange(1, 9)) for _ in range(12)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    expected = []
    for index, prompt in enumerate(jobs):
        alone.add_request(str(index), prompt, params)
        while alone.has_unfinished():
            found = alone.step()
        expected.append(found[0].outputs[0].token_ids)
    waiting, alive, aborted = list(range(num_requests)), set[str](), 0
    while waiting or running.has_unfinished():
        while waiting and len(alive) < 6:
            number = waiting.pop()
            running.add_request(str(number), jobs[number // 4 % len(jobs)], params)
            alive.add(str(number))
        if alive and rng.random() < 0.1:
            doomed = rng.choice(sorted(alive))
            running.abort([doomed])
            alive.discard(doomed)
            aborted += 1
        for output in running.step():
            if output.finished and output.request_id in alive:
                alive.discard(output.request_id)
                assert output.outputs[0].token_ids == expected[int(output.request_id) // 4 % len(jobs)]
    assert (guard.num_snapshots > 5) == (running.stats().prefix_hit_tokens > 0) == (num_snapshots > 0)
    return guard.num_admitted, running.stats().num_preemptions, aborted


@pytest.mark.parametrize("num_snapshots", [0, 3])
@pytest.mark.parametrize("architecture", [JAMBA, MAMBA2, DELTA], ids=["jamba", "mamba2", "delta"])
def test_no_row_leaks_or_is_read_before_it_is_written(architecture: dict[str, Any], num_snapshots: int) -> None:
    admitted, preempted, aborted = check_rows(architecture, 25, 0, num_snapshots)
    assert admitted > 25 - aborted and aborted and (preempted or architecture is MAMBA2)


@pytest.mark.parametrize("architecture", [JAMBA, MAMBA2], ids=["jamba", "mamba2"])
def test_states_of_several_requests_are_kept_and_read_in_one_step(architecture: dict[str, Any]) -> None:
    params, jobs = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), [list(range(i, i + 9)) for i in (20, 50, 80)]

    def serve(engine: Engine) -> list[list[int]]:
        for index, prompt in enumerate(jobs):
            engine.add_request(str(index), prompt, params)
        done = finish(engine)
        return [done[str(index)].outputs[0].token_ids for index in range(len(jobs))]

    kernels = {"default": "reference"}
    expected = serve(build_engine(config(architecture, kernels=kernels)))
    engine = build_engine(config(architecture, cache=CacheConfig(4, num_blocks=200, state_snapshots=3), kernels=kernels))
    moved: list[tuple[int, int]] = []
    step = executor_of(engine)._step

    def watch(found: StepInput) -> Any:
        moved.append((len(found.snapshots), sum(request.snapshot >= 0 for request in found.new)))
        return step(found)

    executor_of(engine)._step = watch
    assert serve(engine) == serve(engine) == expected
    assert (3, 0) in moved and (0, 3) in moved


@pytest.mark.slow
@pytest.mark.parametrize("num_snapshots", [0, 3])
@pytest.mark.parametrize("architecture", [JAMBA, MAMBA2, DELTA], ids=["jamba", "mamba2", "delta"])
def test_no_row_leaks_in_a_thousand_admissions(architecture: dict[str, Any], num_snapshots: int) -> None:
    """Mamba 2 alone has no cache for want of which a request would be preempted."""
    admitted, preempted, aborted = check_rows(architecture, 1100, 1, num_snapshots)
    assert admitted >= 1000 and (preempted > 50 or architecture is MAMBA2) and aborted > 50


@pytest.mark.parametrize("architecture", [JAMBA, MAMBA2], ids=["jamba", "mamba2"])
def test_recorded_decodes_leave_rows_of_padding_alone(architecture: dict[str, Any]) -> None:
    """What a recording computes is called here, as a GPU would replay it: padding belongs to nobody."""

    def serve(is_recorded: bool) -> list[list[int]]:
        engine = build_engine(
            config(architecture, scheduler=SchedulerConfig(max_num_seqs=8), graphs=GraphConfig(enabled=False), device="cpu")
        )
        sizes: list[int] = []

        def capture(run: Any) -> Any:
            def replay() -> Any:
                logits, hidden = run()
                sizes.append(len(logits))
                return logits, hidden

            return replay

        if is_recorded:
            executor_of(engine)._runner.capture_graphs([2, 8], capture)
        guard = Guard(engine)
        for index in range(5):
            params = SamplingParams(temperature=0, max_tokens=3 + 4 * index, ignore_eos=True)
            engine.add_request(str(index), list(range(3, 9 + index)), params)
        done = {}
        while engine.has_unfinished():
            done.update({o.request_id: o.outputs[0].token_ids for o in engine.step() if o.finished})
        assert guard.num_admitted == 5 and set(sizes) == ({2, 8} if is_recorded else set())
        return [done[str(index)] for index in range(5)]

    assert serve(True) == serve(False)


@pytest.mark.parametrize("kind", ["local", "null", "simulated"])
@pytest.mark.parametrize("architecture", [JAMBA, MAMBA2], ids=["jamba", "mamba2"])
def test_blocks_are_what_states_leave_of_the_memory(architecture: dict[str, Any], kind: str) -> None:
    """A token of Jamba's one attention layer takes 128 bytes. Rows are of requests and of prefixes."""
    states, blocks = (3 + 2) * BYTES[architecture["model_type"]], 10
    scheduler = SchedulerConfig(max_num_seqs=3)
    cache = CacheConfig(4, memory_bytes=states + blocks * 4 * 2 * 2 * 8 * 4, state_snapshots=2)
    asked = config(architecture, cache=cache, scheduler=scheduler, executor=ExecutorConfig(kind))
    found = build_engine(asked).executor
    assert found.num_blocks == (blocks if architecture is JAMBA else 1) and found.has_states
    asked.cache.memory_bytes = states - 1
    rows = "scheduler.max_num_seqs=3 requests and cache.state_snapshots=2 prefixes"
    with pytest.raises(ValueError, match=rf"states of {rows}, which take {states} bytes"):
        build_engine(asked)


def test_what_states_cannot_do_is_off_and_said_so_or_refused_by_name() -> None:
    assert build_engine(config(JAMBA)).config.cache.prefix_caching is False
    assert build_engine(config(JAMBA, cache=CacheConfig(4, 200, state_snapshots=2))).config.cache.prefix_caching is True
    plain = {**JAMBA, "model_type": "llama"}
    assert build_engine(config(plain)).config.cache.prefix_caching is True
    with pytest.raises(ValueError, match=r"cache.state_snapshots=2 cannot work: it must be 0: no layers of 'made up' keep states"):
        build_engine(config(plain, cache=CacheConfig(4, 200, state_snapshots=2)))
    with pytest.raises(ValueError, match=r"cache.prefix_caching=true cannot work: layers of 'made up' keep states"):
        build_engine(config(JAMBA, cache=CacheConfig(prefix_caching=True)))
    with pytest.raises(ValueError, match=r"speculative_config.method=ngram cannot work: layers of 'made up' keep states"):
        build_engine(config(JAMBA, speculative_config=SpeculativeConfig.of({"method": "ngram", "num_speculative_tokens": 2})))
    draft = SpeculativeConfig.of({"method": "draft_model", "num_speculative_tokens": 2, "architecture": JAMBA})
    for kind in ("simulated", "distributed"):
        asked = config(MAMBA2, executor=ExecutorConfig(kind), parallel=ParallelConfig(tp=4))
        asked.parallel.backend = "threads" if kind == "distributed" else asked.parallel.backend
        with pytest.raises(ValueError, match=r"parallel.tp=4 .* it must divide the model's 2 groups of heads with states; 1, 2 do"):
            build_engine(asked)
    with pytest.raises(ValueError, match="its layers keep states, from which no wrong draft can be taken back"):
        build_engine(config(plain, speculative_config=replace(draft, model=None)))


@pytest.mark.parametrize("num_snapshots", [0, 2])
def test_samples_of_one_prompt_are_single_requests_with_the_following_seeds(num_snapshots: int) -> None:
    """They share nothing by a fork, and by a prefix what was kept of it."""

    def serve(params: SamplingParams) -> list[list[int]]:
        engine.add_request("0", list(range(20)), params)
        while engine.has_unfinished():
            found = engine.step()
        return [completion.token_ids for completion in found[-1].outputs]

    cache = CacheConfig(4, num_blocks=200, state_snapshots=num_snapshots)
    engine = build_engine(config(JAMBA, cache=cache, kernels={"default": "reference"}))
    params = SamplingParams(n=3, seed=7, max_tokens=8, temperature=1.0, ignore_eos=True)
    forked = serve(params)
    assert forked == [serve(replace(params, n=1, seed=7 + i))[0] for i in range(3)]
    stats = engine.stats()
    assert stats.num_forks == 0 and stats.prefix_hit_tokens == (16 * 5 if num_snapshots else 0)
