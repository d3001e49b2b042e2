"""Several schedulers whose ranks share the experts give what one process gives; a rank without tokens takes part all the same.

Ranks are threads of this process; processes stand in one test.
"""

from __future__ import annotations

import functools
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.clock import WallClock
from framework.config import CacheConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.distributed.executor import DistributedExecutor
from framework.distributed.lockstep import LockstepExecutor
from framework.distributed.messages import Masks, Place, Steps
from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError, EngineDeadError
from framework.engine.inputs import InputProcessor
from framework.engine.lockstep import LockstepEngine
from framework.engine.router import LeastLoaded
from framework.engine.step import StepInput, StepOutput
from framework.executor.null import NullExecutor
from framework.models.expert_map import write_loads
from framework.outputs import RequestOutput
from framework.sampling_params import StructuredOutputsParams
from framework.speculation.config import SpeculativeConfig
from triton_kernels.resolve import NoKernelError

from ..framework.engines import assert_idle, finish, run, token_params, tokens_of
from ..framework.models.checkpoints import make
from ..models.examples import EXAMPLES
from ..test_exactness import Job, some_jobs
from .ranks import FAULTY, LOST, SHAPE, faulty_rank, make_config, null_rank

TIGHT = CacheConfig(block_size=4, num_blocks=19, prefix_caching=True, check_invariants=True)
CHUNKS = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=13)


@functools.cache
def folder(name: str) -> str:
    path = tempfile.mkdtemp()
    make(EXAMPLES[name], Path(path))
    return path


def jobs(count: int = 9) -> list[Job]:
    """Greedy and sampled, penalties, log-probabilities, several completions; in the end some scheduler is idle."""
    found = [([token % 200 + 3 for token in prompt], params) for prompt, params in some_jobs(count, seed=1, max_tokens=14)]
    for i, (_, params) in enumerate(found):
        params.detokenize = False
        params.logprobs, params.prompt_logprobs = (3 if i % 2 else None), (2 if i % 4 == 1 else None)
        params.repetition_penalty, params.n = (1.2 if i % 3 == 0 else 1.0), (2 if i == 4 else 1)
    return [(tuple(prompt), params) for prompt, params in found]


def build(
    name: str,
    parallel: ParallelConfig | None,
    dtype: str = "float32",
    cache: CacheConfig | None = None,
    kernels: dict[str, str] | None = None,
    **given: Any,
) -> Engine:
    config = EngineConfig(
        ModelConfig(folder(name), tokenizer="tiny", dtype=dtype, max_model_len=90, max_logprobs=-1),
        cache or CacheConfig(block_size=4, num_blocks=120),
        CHUNKS,
        kernels={"default": "reference", **(kernels or {})},
        num_threads=1,
        device="cpu",
        **given,
    )
    if parallel is not None:
        config.executor, config.parallel = ExecutorConfig("distributed"), parallel
    return build_engine(config)


def told(outputs: list[RequestOutput]) -> list[Any]:
    return [(o.error, o.prompt_logprobs, [(c.token_ids, c.finish_reason, c.logprobs) for c in o.outputs]) for o in outputs]


@functools.cache
def expected(name: str, dtype: str = "float32") -> list[Any]:
    engine = build(name, None, dtype)
    return told(run(engine, jobs()))


def threads(tp: int, dp: int, **given: Any) -> ParallelConfig:
    return ParallelConfig(tp=tp, dp=dp, ep=tp * dp, backend="threads", **given)


@pytest.mark.parametrize(("name", "dtype", "parallel"), [
    ("mixtral", "float32", threads(1, 2)), ("qwen3-moe", "bfloat16", threads(1, 2)), ("qwen3-moe", "float32", threads(2, 2)),
    ("mixtral", "bfloat16", threads(1, 4)), ("deepseek-v3", "float32", threads(1, 2, redundant_experts=4)),
    ("qwen3-moe", "float32", threads(1, 2, pp=2, redundant_experts=2)),
])  # fmt: skip
def test_schedulers_give_what_one_process_gives(name: str, dtype: str, parallel: ParallelConfig) -> None:
    engine = build(name, parallel, dtype)
    assert told(run(engine, jobs())) == expected(name, dtype)
    inside = cast(LockstepEngine, engine).engines
    assert len(inside) == parallel.dp and all(each.stats().num_output_tokens for each in inside)
    for each in inside:
        assert_idle(each)
    engine.shutdown()


def test_so_they_do_with_preemptions_and_cached_prefixes() -> None:
    engine = build("qwen3-moe", threads(1, 2), cache=TIGHT, router="least_loaded")
    assert [output[2] for output in told(run(engine, jobs()))] == [output[2] for output in expected("qwen3-moe")]
    stats = engine.stats()
    assert stats.num_preemptions > 0 and stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0
    assert stats.num_output_tokens == sum(len(c[0]) for output in expected("qwen3-moe") for c in output[2])
    metrics = engine.metrics()
    assert metrics.stats.num_steps == stats.num_steps and sum(metrics.finished.values()) == 10
    assert metrics.histograms["time_to_first_token_seconds"].counts.sum() == 10
    assert engine.reset_prefix_cache() and engine.kv_usage == 0
    engine.shutdown()


def test_dispatch_and_combine_can_be_one_kernel() -> None:
    engine = build("mixtral", threads(1, 2, redundant_experts=2), kernels={"moe_exchange": "torch"})
    assert [output[2] for output in told(run(engine, jobs(4)))] == [output[2] for output in expected("mixtral")[:4]]
    report = engine.plan_report()
    assert report["moe_exchange"]["calls"] and "all_gather" not in report and "reduce_scatter" not in report
    engine.shutdown()


@pytest.mark.parametrize(
    ("tp", "kernels", "text"),
    [
        (1, {"moe_exchange": "deep_ep"}, "needs the package deep_ep"),
        (1, {"reduce_scatter": "nccl"}, "nccl: runs on cuda, not on cpu"),
        (2, {"all_gather": "gloo"}, "gloo: serves groups of gloo, this one is of threads"),
    ],
)
def test_kernels_that_schedulers_cannot_share_experts_by_are_refused_before_weights_are_read(
    tp: int, kernels: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.worker.local_executor.load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(NoKernelError, match=text):
        build("mixtral", threads(tp, 2), kernels=kernels)


def assert_counts(engine: Engine) -> None:
    """What is counted, from the last move on, is what all tokens choose."""
    prompt = list(range(20, 29))
    engine.add_request("one", prompt, SamplingParams(temperature=0, max_tokens=1, detokenize=False))
    finish(engine)
    loads = engine.expert_loads()
    assert loads and all(sum(of_layer) == len(prompt) * 2 for of_layer in loads.values())


def test_experts_move_while_schedulers_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few steps, and when asked."""
    moves, rebalance = [], DistributedExecutor.rebalance_experts
    monkeypatch.setattr(DistributedExecutor, "rebalance_experts", lambda self: moves.append(rebalance(self)) or moves[-1])
    engine = build("qwen3-moe", threads(1, 2, redundant_experts=2, eplb=True, eplb_steps=4))
    assert told(run(engine, jobs())) == expected("qwen3-moe") and moves
    before, after = engine.rebalance_experts()
    assert after <= before and not any(sum(loads) for loads in engine.expert_loads().values())
    assert_counts(engine)
    engine.shutdown()


def test_experts_that_cannot_move_end_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that all fail alike have failed nothing in common: each may have moved some."""

    def move(*_: Any) -> None:
        raise FloatingPointError("the file is gone")

    monkeypatch.setattr("framework.worker.local_executor.LocalExecutor.move_experts", move)
    engine = build("mixtral", threads(1, 2, eplb=True))
    engine.rebalance_experts()
    engine.add_request("r", [30, 31], SamplingParams(max_tokens=3, detokenize=False))
    assert "experts could not be moved: FloatingPointError: the file is gone" in str(finish(engine)["r"].error)
    assert isinstance(engine.errored, DeviceLostError)


def test_recorded_loads_place_the_experts(tmp_path: Path) -> None:
    counting = build("mixtral", ParallelConfig(tp=2, ep=2, eplb=True, backend="threads"))
    assert told(run(counting, jobs())) == expected("mixtral")
    loads = counting.expert_loads()
    write_loads(tmp_path / "loads.json", loads)
    before, after = counting.rebalance_experts()
    assert told(run(counting, jobs())) == expected("mixtral")
    counting.shutdown()
    placed = build("mixtral", ParallelConfig(tp=2, ep=2, eplb=True, expert_loads=str(tmp_path / "loads.json"), backend="threads"))
    assert told(run(placed, jobs())) == expected("mixtral") and after <= before
    assert placed.expert_loads() == loads
    assert placed.rebalance_experts()[0] == pytest.approx(after)
    assert_counts(placed)
    placed.shutdown()


def test_processes_give_what_one_process_gives() -> None:
    engine = build("mixtral", ParallelConfig(dp=2, ep=2, redundant_experts=2, eplb=True, eplb_steps=5))
    assert told(run(engine, jobs())) == expected("mixtral")
    engine.shutdown()


def test_requests_are_numbered_and_named_across_schedulers() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=6, ignore_eos=True, detokenize=False)
    found = []
    for parallel in (None, threads(1, 2)):
        engine = build("mixtral", parallel)
        for i in range(4):
            engine.add_request(str(i), [30 + i, 31, 32], params)  # seeds are of its number
        with pytest.raises(ValueError, match="ids must be unique"):
            engine.add_request("1", [30], params)
        found.append({name: tokens_of(output) for name, output in finish(engine).items()})
        engine.shutdown()
    assert found[0] == found[1]


def test_grammars_and_aborts_concern_one_scheduler() -> None:
    engine = build("mixtral", threads(1, 2))
    choice, other = (
        SamplingParams(temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(regex=regex))
        for regex in ("[ab]{3}", "[cd]{2}")
    )
    free = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
    for i in range(4):
        engine.add_request(str(i), list(range(10 + i, 20 + i)), (other, choice, free, free)[i])
    ended = {output.request_id: output for output in engine.abort(["2"])}
    while engine.has_unfinished():
        ended |= {output.request_id: output for output in engine.step() if output.finished}
    assert [ended[str(i)].outputs[0].finish_reason for i in range(4)] == ["stop", "stop", "abort", "length"]
    assert re.fullmatch("[cd]{2}", ended["0"].outputs[0].text) and re.fullmatch("[ab]{3}", ended["1"].outputs[0].text)
    engine.shutdown()


# Without a model


def lockstep(dp: int, factory: Callable[..., Any] = null_rank, **scheduler: Any) -> LockstepEngine:
    config = make_config(1, "threads", **scheduler)
    config.parallel.dp = config.parallel.ep = dp
    executor = LockstepExecutor(DistributedExecutor(config, factory))
    engines = [Engine(config, cast(Any, member), InputProcessor(None, {}, ()), WallClock()) for member in executor.members]
    return LockstepEngine(engines, executor.flush, LeastLoaded(0))


class Noting(NullExecutor):
    """Notes the steps of every rank."""

    seen: list[tuple[int, int, int, int]]

    def __init__(self, config: EngineConfig, place: Place) -> None:
        super().__init__(config, SHAPE)
        self._rank = place.rank

    def submit(self, step: Any) -> Any:
        self.seen.append((step.step_id, self._rank, sum(step.num_tokens), step.most_tokens))
        return super().submit(step)


@pytest.mark.parametrize(("dp", "in_flight"), [(2, 1), (3, 2)])
def test_every_rank_gets_every_step(dp: int, in_flight: int) -> None:
    Noting.seen = []
    engine = lockstep(dp, Noting, in_flight_steps=in_flight)
    alone = Engine(engine.config, NullExecutor(engine.config, SHAPE), InputProcessor(None, {}, ()), WallClock())
    found = []
    for each in (engine, alone):
        for i in range(7):
            params = token_params(max_tokens=3 + 4 * i, ignore_eos=True, n=1 + i % 2, temperature=1.0)
            each.add_request(str(i), [i % 5] * (1 + 6 * i), params)
        found.append({name: tokens_of(output) for name, output in finish(cast(Engine, each)).items()})
    assert found[0] == found[1]  # seeds, which nobody gave, included
    for each in engine.engines:
        assert_idle(each)
    engine.shutdown()  # who has no tokens is not waited for before
    steps: dict[int, list[tuple[int, int, int]]] = {}
    for step_id, *rest in Noting.seen:
        steps.setdefault(step_id, []).append((rest[0], rest[1], rest[2]))
    assert sorted(steps) == list(range(len(steps)))
    for of_ranks in steps.values():
        assert sorted(rank for rank, _, _ in of_ranks) == list(range(dp))
        assert {most for _, _, most in of_ranks} == {max(count for _, count, _ in of_ranks)}
    assert any(0 in [count for _, count, _ in of_ranks] for of_ranks in steps.values())


def test_it_tells_of_all_its_schedulers_while_they_serve() -> None:
    engine = lockstep(2)
    shared = [7] * 40
    engine.add_request("long", [1] * 90, token_params(max_tokens=50, ignore_eos=True))
    engine.add_request("short", shared, token_params(max_tokens=2, ignore_eos=True))
    while not any(output.finished for output in engine.step()):
        pass
    usages = [each.kv_usage for each in engine.engines]
    assert usages[0] > usages[1] == 0 and engine.stats().kv_usage == engine.kv_usage == usages[0] / 2
    for name, buckets in engine.metrics().histograms.items():
        assert buckets.total == sum(each.metrics().histograms[name].total for each in engine.engines)
    assert not engine.reset_prefix_cache()
    engine.add_request("next", shared, token_params(max_tokens=2, ignore_eos=True))
    engine.engines[0].is_waiting = True
    assert not engine.is_waiting, "the other has something to do"
    engine.engines[1].is_waiting = True
    assert engine.is_waiting
    finish(cast(Engine, engine))
    assert engine.engines[1].stats().prefix_hit_tokens, "nothing was forgotten"
    assert engine.reset_prefix_cache()
    engine.shutdown()


def test_nothing_is_sent_before_what_was_sent_is_sampled() -> None:
    sent: list[Any] = []
    executor = SimpleNamespace(num_schedulers=2, vocab_size=40, send_step=sent.append, send=sent.append)
    whole = LockstepExecutor(cast(Any, executor))
    first, second = whole.members
    masked = first.submit(StepInput(1, [0], [1], [1], masked=[0]))
    second.submit(StepInput(1, [], [], []))
    whole.flush()
    second.submit(StepInput(2, [], [], []))
    whole.flush()
    assert len(sent) == 1
    masked.sample(np.zeros((1, 2), dtype=np.int32))
    whole.flush()
    assert [type(message) for message in sent] == [Steps, Masks, Steps] and sent[1].scheduler == 0
    given_up = first.submit(StepInput(2, [0, 1], [1, 1], [1, 1], masked=[0, 1]))
    whole.flush()
    late = second.submit(StepInput(3, [], [], []))
    executor.output = lambda *_: StepOutput(0, [])
    late.result()
    assert given_up.sent is not None and sent[-2].masks.shape == (2, 2) and (sent[-2].masks == -1).all()


@pytest.mark.parametrize(
    ("fault", "text"), [(FAULTY, "rank 1: .*not all ranks failed like that"), (LOST, "rank 1: .*fell off the bus")]
)
def test_what_ends_one_rank_ends_all_requests(fault: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.distributed.executor.FAILURE_S", 0.2)
    monkeypatch.setattr("framework.distributed.workers.KILL_S", 0.1)
    engine = lockstep(3, faulty_rank)
    for i in range(5):
        prompt = [fault, 1, 0] if i == 1 else [1, 2, 3]
        engine.add_request(str(i), prompt, token_params(max_tokens=40, ignore_eos=True))
    ended = finish(cast(Engine, engine))
    assert len(ended) == 5 and isinstance(engine.errored, DeviceLostError)
    for output in ended.values():
        assert output.error is not None
        assert re.search(text, output.error)
    with pytest.raises(EngineDeadError, match="rank 1"):
        engine.add_request("next", [1], token_params())


def test_a_step_is_as_many_bytes_as_its_parts() -> None:
    steps = Steps(7, [StepInput(1, [0, 1], [1, 5], [1, 1], most_tokens=6), StepInput(0, [], [], [], most_tokens=6)])
    assert pickle.loads(pickle.dumps(steps)) == steps


@pytest.mark.parametrize(("parallel", "text"), [
    (threads(1, 8), "parallel.ep=8 cannot work: every rank needs an expert of each layer, and those have 4"),
    (threads(3, 1), "parallel.tp=3 cannot work|parallel.ep=3 cannot work: it must divide the model's 4 experts together"),
    (threads(2, 1, redundant_experts=1), "divide the model's 4 experts together with parallel.redundant_experts=1; 0, 2, 4 of"),
    (threads(2, 1, redundant_experts=6), "parallel.redundant_experts=6 cannot work: 2 ranks hold an expert at most 2 times"),
    (threads(2, 1, expert_loads="/nowhere/loads.json"), "parallel.expert_loads='/nowhere/loads.json' cannot be read"),
    (ParallelConfig(tp=2, dp=2, ep=3), "parallel.ep=3 cannot work: it must be 1, or 2 as parallel.tp, or 4 as parallel.tp"),
    (ParallelConfig(tp=2, redundant_experts=2), "parallel.redundant_experts=2 cannot work: it must be 0 without parallel.ep"),
    (ParallelConfig(tp=2, eplb=True), "parallel.eplb=True cannot work: it must be False without parallel.ep"),
    (ParallelConfig(tp=2, ep=2, eplb_steps=5), "parallel.eplb_steps=5 cannot work: it must be 0 without parallel.eplb=true"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_weights_are_read(
    parallel: ParallelConfig, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.distributed.executor.DistributedExecutor.__init__", None)
    with pytest.raises(ValueError, match=text):
        build("mixtral", parallel)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match=r"parallel.ep=2 cannot work: the model has no experts"):
        build_engine(EngineConfig(executor=ExecutorConfig("distributed"), parallel=threads(1, 2)))
    spec = SpeculativeConfig("ngram", num_speculative_tokens=2)
    with pytest.raises(ValueError, match=r"speculative_config.method=ngram cannot work with parallel.ep=2 over parallel.dp=2"):
        build("mixtral", threads(1, 2), speculative_config=spec)
    with pytest.raises(ValueError, match=r"parallel.ep=4 .*executor.kind=simulated"):
        EngineConfig(executor=ExecutorConfig("simulated"), parallel=ParallelConfig(tp=2, dp=2, ep=4)).validate()
    engine = build("mixtral", None)
    with pytest.raises(ValueError, match=r"parallel.eplb=false: set it, with parallel.ep"):
        engine.rebalance_experts()
