"""Encoder-decoders on executors without a device: the calls of the native decoder, how long they take, what the cache holds."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from framework.build import build_engine
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, GraphConfig, ParallelConfig, SchedulerConfig
from framework.engine.encoding import EncoderInput
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.kv_cache.spec import CrossKV, PagedKV, group_layers
from framework.engine.prompts import EngineInput
from framework.engine.step import NewRequest, StepInput
from framework.executor.mirror import Mirror
from framework.executor.simulated import SimulatedExecutor
from framework.sampling_params import SamplingParams
from framework.study.driver import run_workload
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.report import format_metrics
from framework.study.results import collect_requests, write_requests
from framework.study.workload import WorkloadConfig, build_workload

from ..engines import assert_idle, finish
from .simulations import called, make_executor
from .test_encoders import MODELS, model_of

VOCAB = 211


def some_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def build(kind: str, executor: str, **settings: Any) -> Engine:
    model, _ = model_of(kind)
    device = ExecutorConfig("simulated", "h200", "roofline") if executor == "simulated" else ExecutorConfig(executor)
    given = {"cache": CacheConfig(16, num_blocks=200), "graphs": GraphConfig(enabled=False), "executor": device, **settings}
    return build_engine(EngineConfig(model, **given))


def add(engine: Engine, name: str, num_encoded: int, num_begin: int, num_output: int, rng: random.Random) -> None:
    prompt = engine.inputs.made_up(some_tokens(rng, num_encoded), some_tokens(rng, num_begin))
    engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True))


COUNTED = ("linear", "rms_norm", "layer_norm", "kv_cache_write", "embedding", "slot_mapping")


@pytest.mark.parametrize("kind", MODELS)
def test_a_simulated_run_calls_what_a_real_one_does(kind: str) -> None:
    """Prompts of encoder and decoder, chunks, decodes, and steps of all; call by call."""
    found = []
    for executor in ("local", "simulated"):
        rng, scheduler = random.Random(0), SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=32, in_flight_steps=1)
        engine = build(kind, executor, scheduler=scheduler, profile=True, num_threads=1 if executor == "local" else 0)
        for i in range(8):
            add(engine, str(i), rng.randint(1, 60), rng.choice([0, 0, 5, 40]), rng.randint(1, 8), rng)
        finish(engine)
        found.append(called(engine, COUNTED))
        engine.shutdown()
    real, simulated = found
    assert simulated == real
    assert {op for op, *_ in real} > {"linear", "embedding", "paged_attention_decode", "paged_attention_prefill"}


@pytest.mark.parametrize("kind", MODELS)
def test_weights_and_blocks_are_those_of_a_real_one(kind: str) -> None:
    budget = {"cache": CacheConfig(16, memory_bytes=3_000_000)}
    real, simulated, null = (build(kind, name, **budget).executor for name in ("local", "simulated", "null"))
    assert simulated.weight_bytes == real.nominal_weight_bytes
    assert simulated.num_blocks == real.num_blocks == null.num_blocks
    assert simulated.groups == real.groups == null.groups


def step_of(seats: list[int], counts: list[int], encoded: list[int], begin: int = 0) -> StepInput:
    """encoded: of new requests with so many tokens each."""
    new = [
        NewRequest(seat, "", [0] * count, count, 0, [[1], [2]], SamplingParams(seed=0), encoder_input=EncoderInput(n, [3] * n))
        for seat, count, n in zip(seats, counts, encoded)
    ]
    return StepInput(begin, seats, counts, [1] * len(seats), new)


def seconds(executor: SimulatedExecutor, step: StepInput) -> float:
    start_s = executor.clock.now()
    executor.submit(step).result()
    return executor.clock.now() - start_s


def test_what_takes_longer() -> None:
    """More to encode, for the step that encodes it and for decodes, which read what came of it; the first pass is no decode's."""
    first, after = {}, {}
    for count in (16, 100, 5000):
        executor = make_executor(MODELS["t5"])
        first[count] = seconds(executor, step_of([0, 1], [1, 1], [count] * 2))
        assert executor.op_times()["library"].seconds > 0
        encoded_s = executor.op_times()["library"].seconds
        decode = StepInput(1, [0, 1], [1, 1], [1, 1])
        after[count] = seconds(executor, decode)
        assert executor.op_times()["library"].seconds == encoded_s, "an encoder runs once"
        assert after[count] < first[count]
    assert first[16] < first[100] < first[5000] and after[16] <= after[100] < after[5000]
    one, other = (seconds(make_executor(MODELS["t5"]), step_of([0, 1], [1, 1], lengths)) for lengths in ([100, 16], [16, 100]))
    assert one == pytest.approx(other), "equal lengths take equally long, whoever has them"


def test_steps_ahead_are_those_that_come() -> None:
    """Of decodes, each with a token more and as much of the encoder."""

    def after(steps: int, ahead: bool) -> tuple[float, dict[str, tuple[float, int]]]:
        executor = make_executor(MODELS["bart"])
        executor.submit(step_of([0, 1], [1, 1], [90, 30])).result()
        if ahead:
            cost = executor.decodes_ahead(np.arange(2))
            total = sum(cost.next_s() for _ in range(steps))
            cost.take(steps)
        else:
            total = sum(seconds(executor, StepInput(1 + i, [0, 1], [1, 1], [1, 1])) for i in range(steps))
        return total, {op: (pytest.approx(time.seconds), time.calls) for op, time in executor.op_times().items()}

    assert after(70, True) == (pytest.approx(after(70, False)[0]), after(70, False)[1])


def test_an_encoders_pass_is_in_no_recording() -> None:
    """A decode is one launch and its sampling; a request that begins beside it launches all."""
    for enabled in (True, False):
        executor = make_executor(MODELS["t5"], launch_s=1.0, calibration="roofline", graphs=GraphConfig(enabled=enabled))
        begins = seconds(executor, step_of([0], [1], [20]))
        decodes = seconds(executor, StepInput(1, [0], [1], [1]))
        assert begins > 50 and (decodes < 4) == enabled
    executor = make_executor(MODELS["t5"], launch_s=1.0)
    assert seconds(executor, step_of([0], [1], [20])) == pytest.approx(begins, abs=1), "a prompt of one token is no decode"


@pytest.mark.parametrize("kind", ["t5", "whisper"])
@pytest.mark.parametrize("seed", range(12))
def test_mixes_keep_the_protocol(kind: str, seed: int) -> None:
    """Of random lengths, that are preempted and aborted, against the mirror of the cache; tokens depend on nothing else."""
    rng = random.Random(seed)
    size = rng.choice([2, 4, 16])
    one = -(-60 // size) + -(-64 // size) + 1
    blocks = rng.choice([one, one + 5, one + 12, one + 300])
    cache = CacheConfig(size, num_blocks=blocks, check_invariants=True)
    jobs = [(rng.randint(1, 60), rng.choice([0, 0, 3, 20]), rng.randint(1, 40), rng.random()) for _ in range(rng.randint(4, 12))]
    scheduler = SchedulerConfig(max_num_seqs=rng.choice([2, 8]), max_num_batched_tokens=rng.choice([8, 17, 256]))
    alone = build(kind, "null", cache=replace(cache, num_blocks=one + 300))
    expected = {}
    for i, (encoded, begin, output, own) in enumerate(jobs):
        add(alone, str(i), encoded, begin, output, random.Random(own))
        expected |= finish(alone)
    engine = build(kind, "null", cache=cache, scheduler=scheduler)
    for i, (encoded, begin, output, own) in enumerate(jobs):
        add(engine, str(i), encoded, begin, output, random.Random(own))
    aborted, done = {str(i) for i in range(len(jobs)) if rng.random() < 0.2}, {}
    while engine.has_unfinished():
        done |= {output.request_id: output for output in engine.step()}
        if aborted and rng.random() < 0.3:
            engine.abort([aborted.pop()])
    finished = {name: output for name, output in done.items() if output.finished}
    assert len(finished) >= len(jobs) * 0.5
    for name, output in finished.items():
        if output.outputs[0].finish_reason != "abort":
            assert output.outputs[0].token_ids == expected[name].outputs[0].token_ids
    assert_idle(engine)


CROSS = group_layers([PagedKV(1, 8, 8, "float32"), CrossKV(1, 8, 8, "float32")])


def request(seat: int, blocks: list[list[int]], num_encoded: int | None = 6) -> NewRequest:
    given = None if num_encoded is None else EncoderInput(num_encoded, [7] * num_encoded)
    return NewRequest(seat, str(seat), [5, 6], 2, 0, blocks, SamplingParams(seed=seat), encoder_input=given)


VIOLATIONS = [
    ([request(0, [[1], [2]])], [], "1 blocks for 6 vectors"),
    ([request(0, [[1], [2, 3, 4]])], [], "3 blocks for 6 vectors"),
    ([request(0, [[1], []], None)], [], "is missing"),
    ([request(0, [[1], [2, 1]])], [], "another's, too"),
    ([request(0, [[1], [2, 3]]), request(1, [[4], [3, 5]])], [], "another's, too"),
    ([request(0, [[1], [2, 3]])], [(0, 1, [4])], "more blocks for what an encoder gave"),
    ([request(0, [[1], [2, 0]])], [], "null block"),
]


@pytest.mark.parametrize(("new", "new_blocks", "said"), VIOLATIONS)
def test_the_mirror_sees_what_is_wrong(new: list[NewRequest], new_blocks: list[Any], said: str) -> None:
    seats = [each.seat for each in new]
    mirror = Mirror(2, 9, 4, 50, CROSS)
    with pytest.raises(AssertionError, match=said):
        mirror.apply(StepInput(0, seats, [2] * len(seats), [1] * len(seats), new, new_blocks=new_blocks))


def test_the_mirror_sees_what_is_overwritten() -> None:
    """By a request that writes its tokens there, whenever the other one decodes."""
    mirror = Mirror(2, 9, 4, 50, CROSS)
    mirror.apply(StepInput(0, [0], [2], [1], [request(0, [[1], [2, 3]])]))
    mirror.apply(StepInput(1, [0], [1], [1]))
    mirror.apply(StepInput(2, [1], [2], [1], [request(1, [[3], [4, 5]])]))
    with pytest.raises(AssertionError, match="block 3 does not hold token 4"):
        mirror.apply(StepInput(3, [0], [1], [1]))


@pytest.mark.parametrize("executor", ["null", "simulated"])
def test_prompts_that_cannot_be_are_refused(executor: str) -> None:
    for kind, prompt, said in (
        ("t5", EngineInput([2]), "nothing that its encoder reads"),
        ("t5", {"prompt_token_ids": [5] * 600}, "at most 512"),
        ("whisper", {"prompt_token_ids": [5]}, "the model listens"),
        ("whisper", {"multi_modal_data": {"audio": ([0.0], 16000)}}, "no folder with a feature extractor"),
    ):
        engine = build(kind, executor)
        with pytest.raises(ValueError, match=said):
            engine.add_request("wrong", prompt, SamplingParams(max_tokens=2))
        assert_idle(engine)


def test_several_ranks_are_refused_by_name() -> None:
    for ranks in (ParallelConfig(tp=2), ParallelConfig(pp=2)):
        with pytest.raises(ValueError, match=r"parallel\.tp="):
            build("t5", "simulated", parallel=ranks)


@pytest.mark.parametrize(("kind", "encoded", "first"), [("t5", 30, 1), ("whisper", 50, 1)])
def test_a_workload_of_prompts_that_encoders_read(kind: str, encoded: int, first: int, tmp_path: Path) -> None:
    """Lengths are those asked for, in the table of requests too; one that is too long is refused, and the others go on."""
    sizes = {"prompt_tokens": 30, "prompt_spread": 0, "output_tokens": 4, "output_spread": 0}
    config = WorkloadConfig(num_requests=5, decoder_tokens=6, decoder_spread=0, **sizes)
    workload = build_workload(config, VOCAB, None)
    assert all(len(each.decoder_token_ids) == 6 for each in workload) and workload == build_workload(config, VOCAB, None)
    assert len({str(each.decoder_token_ids) for each in workload}) == 5, "each has its own"
    plain = build_workload(replace(config, decoder_tokens=0), VOCAB, None)
    spread = build_workload(replace(config, decoder_tokens=20, decoder_spread=0.5, num_requests=60, prompt_spread=0), VOCAB, None)
    lengths = {len(request.decoder_token_ids) for request in spread}
    assert min(lengths) in (10, 11) and max(lengths) in (29, 30) and len(lengths) > 9
    assert [replace(each, decoder_token_ids=[]) for each in workload] == plain, "nothing else changes with them"
    record = run_workload([build(kind, "simulated")], [*workload, replace(workload[0], prompt_token_ids=[5] * 600)])
    *served, longer = record.requests
    assert {(r.num_encoder_tokens, r.num_prompt_tokens, r.status) for r in served} == {(encoded, first + 6, "ok")}
    assert longer.status == ("refused" if kind == "t5" else "ok")
    metrics = compute_metrics(record, SLOConfig())
    assert metrics["num_encoder_tokens"] == encoded * metrics["num_completed"]
    assert metrics["encoder_tokens_per_s"] == pytest.approx(metrics["num_encoder_tokens"] / metrics["duration_s"])
    assert f"{metrics['num_encoder_tokens']:.0f} of encoders" in format_metrics(metrics)
    write_requests(tmp_path, record.requests)
    runs = pd.DataFrame([{"run": ".", "status": "ok"}])
    assert collect_requests(tmp_path, runs)["num_encoder_tokens"][:5].tolist() == [encoded] * 5


def test_a_decoder_is_given_tokens_only_beside_an_encoder() -> None:
    with pytest.raises(ValueError, match="the model has no encoder"):
        InputProcessor(None, {}, ()).made_up([1, 2], [3])
