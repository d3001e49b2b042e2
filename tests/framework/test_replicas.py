"""Several engines in processes of their own behind a router: where requests go, what they cost whom, and how replicas end. Around
null executors, which start fast; with the tiny model, in test_data_parallel.py."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import framework.build
import framework.engine_client
import framework.replicated_engine
from framework import LLM, AsyncEngine, EngineConfig, RequestOutput, SamplingParams
from framework.build import replica_configs
from framework.config import CacheConfig, ExecutorConfig, ParallelConfig, SchedulerConfig
from framework.engine.errors import EngineDeadError
from framework.engine.prompts import EngineInput
from framework.engine.router import ROUTERS
from framework.engine_process import Add
from framework.lora_request import LoRARequest
from framework.metrics import Counter, Gauge, Histogram
from framework.replicas import Replicas

from . import engine_processes
from .engines import token_params

ROOT = Path(__file__).parents[2]
LONG = 5000
STEP_S = 0.002


def null_config(dp: int = 2, router: str = "least_loaded", **parallel: Any) -> EngineConfig:
    scheduler = SchedulerConfig(policy="priority", max_num_seqs=64, max_num_batched_tokens=512)
    cache = CacheConfig(block_size=16, num_blocks=20_000)
    return EngineConfig(cache=cache, scheduler=scheduler, parallel=ParallelConfig(dp=dp, **parallel), router=router)


@contextmanager
def null_processes(main: Callable[..., None] | None = None) -> Iterator[None]:
    """What is built inside has such engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework.engine_client, "run_engine", main or partial(engine_processes.serve_null, step_s=STEP_S))
        for module in (framework.build, framework.replicated_engine):
            patch.setattr(module, "input_processor", lambda *_: engine_processes.inputs())
        yield


def start(config: EngineConfig) -> AsyncEngine:
    with null_processes():
        return AsyncEngine(config)


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = start(null_config(dp=3))
    yield engine
    engine.shutdown()


def run(main: Any, timeout_s: float = 60) -> Any:
    """In a loop of its own; a hang is a failure."""
    return asyncio.run(asyncio.wait_for(main, timeout_s))


def replicas_of(engine: AsyncEngine) -> Replicas:
    assert isinstance(engine._client, Replicas)
    return engine._client


def pids_of(replicas: Replicas) -> list[int]:
    return [client._process.pid for client in replicas._clients]  # type: ignore[misc]


def long_stream(engine: AsyncEngine, max_tokens: int = LONG, **given: Any) -> Any:
    return engine.generate([1, 2, 3], token_params(max_tokens=max_tokens, ignore_eos=True), **given)


async def last(stream: Any) -> RequestOutput:
    return [output async for output in stream][-1]


async def by_replica(engine: AsyncEngine, name: str) -> dict[str, float]:
    return {m.labels["engine"]: m.value for m in await engine.metrics() if m.name == name and isinstance(m, Counter | Gauge)}


async def until(condition: Callable[[], Any]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


async def until_true(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def is_idle(engine: AsyncEngine) -> bool:
    """Nobody holds a block, and the router knows of nobody."""
    stats = (await engine.report())["stats"]
    counts = [(client.in_flight.num_running, client.in_flight.num_queued_tokens) for client in replicas_of(engine)._clients]
    return not (stats["num_running"] + stats["num_waiting"] + stats["kv_usage"]) and set(counts) == {(0, 0)}


# Where requests go


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "least_tokens"])
def test_equal_requests_on_idle_replicas_are_spread_evenly(engine: AsyncEngine, router: str) -> None:
    async def main() -> None:
        replicas_of(engine)._router = ROUTERS[router](0)
        await until(lambda: is_idle(engine))
        streams = [long_stream(engine, request_id=f"{i}") for i in range(64)]
        firsts = await asyncio.gather(*(anext(stream) for stream in streams))
        assert not any(first.finished for first in firsts)
        running = await by_replica(engine, "vllm:num_requests_running")
        assert sum(running.values()) == 64 and max(running.values()) - min(running.values()) <= 1
        assert [client.in_flight.num_running for client in replicas_of(engine)._clients] == list(running.values())
        await engine.abort(f"{i}" for i in range(64))
        outputs = await asyncio.gather(*map(last, streams))
        assert {output.outputs[0].finish_reason for output in outputs} == {"abort"}
        assert {output.request_id for output in outputs} == {f"{i}" for i in range(64)}
        await until(lambda: is_idle(engine))

    run(main())


def test_short_requests_go_where_a_long_one_is_not(engine: AsyncEngine) -> None:
    async def main() -> None:
        replicas_of(engine)._router = ROUTERS["least_loaded"](0)
        await until(lambda: is_idle(engine))
        stream = long_stream(engine, request_id="long")
        await anext(stream)
        long_on = next(i for i, running in (await by_replica(engine, "vllm:num_requests_running")).items() if running)
        before = await by_replica(engine, "vllm:prompt_tokens")
        for _ in range(6):
            await last(engine.generate([4, 5], token_params(max_tokens=2)))
        grown = {i: total - before[i] for i, total in (await by_replica(engine, "vllm:prompt_tokens")).items()}
        assert grown.pop(long_on) == 0 and sorted(grown.values()) == [6, 6]
        await stream.aclose()

    run(main())


def test_an_abort_frees_the_blocks_of_its_replica_alone(engine: AsyncEngine) -> None:
    async def main() -> None:
        await until(lambda: is_idle(engine))
        streams = {name: long_stream(engine, request_id=name) for name in ("a", "b")}
        for stream in streams.values():
            await anext(stream)
        used = await by_replica(engine, "vllm:kv_cache_usage_perc")
        assert sorted(usage > 0 for usage in used.values()) == [False, True, True]
        assert not await engine.reset_prefix_cache()
        await streams["a"].aclose()

        async def one_is_left() -> bool:
            return sum(usage > 0 for usage in (await by_replica(engine, "vllm:kv_cache_usage_perc")).values()) == 1

        await until(one_is_left)
        assert not (await anext(streams["b"])).finished
        await streams["b"].aclose()
        await until(lambda: is_idle(engine))
        assert await engine.reset_prefix_cache()

    run(main())


def test_what_is_refused_or_fails_is_in_flight_no_more(engine: AsyncEngine) -> None:
    async def main() -> None:
        wrong = [
            last(engine.generate([99_999], token_params())),
            last(engine.generate([1] * 9000, token_params())),
            last(engine.generate([engine_processes.FAULTY], token_params())),
            last(engine.generate({"prompt": "no tokenizer"}, token_params())),
        ]
        found = await asyncio.gather(*wrong, return_exceptions=True)
        assert [type(error) for error in found] == [ValueError, ValueError, RuntimeError, ValueError]
        with pytest.raises(ValueError, match="'twice' is running"):
            stream = long_stream(engine, request_id="twice")
            await anext(stream)
            await last(long_stream(engine, request_id="twice"))
        await stream.aclose()
        await until(lambda: is_idle(engine))

    run(main())


def test_metrics_of_all_replicas_add_up(engine: AsyncEngine) -> None:
    async def main() -> None:
        before = await by_replica(engine, "vllm:generation_tokens")
        stats = (await engine.report())["stats"]
        assert sum(before.values()) == stats["num_output_tokens"]
        outputs = await asyncio.gather(*(last(engine.generate([1, 2], token_params(max_tokens=1 + i, n=2))) for i in range(12)))
        after = await by_replica(engine, "vllm:generation_tokens")
        told = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        assert sum(after.values()) - sum(before.values()) == told
        assert set(after) == {"0", "1", "2"} and all(after[i] > before[i] for i in after)

    run(main())


class Heard:
    """Who waits under a key, and has no loop."""

    def __init__(self) -> None:
        self.loop, self.items, self.ended = self, list[Any](), threading.Event()

    def call_soon_threadsafe(self, callback: Callable[[Any], None], argument: Any) -> None:
        callback(argument)

    def put(self, item: Any) -> None:
        self.items.append(item)
        if isinstance(item, Exception) or item.finished:
            self.ended.set()


def long_add() -> Add:
    params = token_params(max_tokens=LONG, ignore_eos=True, seed=0)
    return Add(engine_processes.inputs().prompt([1, 2, 3]), params, 0, time.time())


@contextmanager
def busy_router(replicas: Replicas) -> Iterator[Heard]:
    """It prepares a request of this receiver until the end of the block."""
    heard, began, go = Heard(), threading.Event(), threading.Event()

    def prepare() -> Add:
        began.set()
        go.wait()
        return long_add()

    key = replicas.open(heard, prepare)
    assert began.wait(60)
    try:
        yield heard
    finally:
        replicas.close(key)
        go.set()


def test_an_abort_that_comes_before_the_router_has_sent_a_request_ends_it(engine: AsyncEngine) -> None:
    replicas, heard = replicas_of(engine), Heard()
    with busy_router(replicas):
        key = replicas.open(heard, long_add)
        assert replicas.place(key) is None
        replicas.abort(key)
    assert heard.ended.wait(60) and heard.items[-1].outputs[0].finish_reason == "abort"
    replicas.close(key)
    run(until(lambda: is_idle(engine)))


def test_the_router_is_told_of_completions_and_tokens(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for client in replicas_of(engine)._clients:
        monkeypatch.setattr(client.in_flight, "add", lambda *given: told.append(given[1:]))
    run(last(engine.generate([1, 2, 3, 4, 5], token_params(max_tokens=2, n=2))))
    assert told == [(2, 5)]


def test_the_router_tells_adapters_apart() -> None:
    salts: list[str | None] = []
    client = SimpleNamespace(is_dead=False, in_flight=None)

    def route(prompt: EngineInput, _: Any) -> int:
        salts.append(prompt.cache_salt)
        return 0

    replicas: Any = SimpleNamespace(living={0: client}, _routed_to=[client], _router=SimpleNamespace(route=route))
    for adapter in (None, LoRARequest("a", 1, "/a"), LoRARequest("b", 2, "/b")):
        add = Add(EngineInput([1]), token_params(), 0, 0.0, adapter)
        assert Replicas._choose(replicas, add) is client
    assert len(set(salts)) == 3


# How replicas end


def serve_as_replica_one_has_room(config: EngineConfig, pipe: Any) -> None:
    """The other has room for half as many blocks."""
    if config.parallel.first_device != 1:
        config = replace(config, cache=replace(config.cache, num_blocks=config.cache.num_blocks // 2))  # type: ignore[operator]
    engine_processes.serve_null(config, pipe, step_s=STEP_S)


def test_one_that_dies_amid_sending_loses_no_request_and_those_that_nobody_got_are_told_of_the_end() -> None:
    with null_processes(serve_as_replica_one_has_room):
        engine = AsyncEngine(null_config(router="round_robin"))
    replicas, waiting = replicas_of(engine), Heard()
    try:
        assert replicas.info.num_blocks == 10_000, "no request may be longer than what any replica holds"
        first, whole = replicas._clients[0], replicas._clients[0].open

        def dies(*_: Any) -> str:
            first.open = whole  # type: ignore[method-assign]
            raise EngineDeadError("just now")

        first.open = dies  # type: ignore[method-assign]
        assert run(last(engine.generate([1], token_params(max_tokens=3)))).finished
        with busy_router(replicas) as prepared:
            replicas.open(waiting, long_add)
            engine.shutdown()
            for heard in (prepared, waiting):
                assert heard.ended.wait(60) and isinstance(heard.items[-1], EngineDeadError)
    finally:
        engine.shutdown()


def test_a_replica_that_is_killed_ends_its_own_requests_and_the_others_serve_on() -> None:
    engine = start(null_config())
    pids = pids_of(replicas_of(engine))

    async def main() -> None:
        streams = [long_stream(engine, 600) for _ in range(4)]
        for stream in streams:
            await anext(stream)
        os.kill(pids[1], signal.SIGKILL)
        found = await asyncio.gather(*map(last, streams), return_exceptions=True)
        dead = [error for error in found if isinstance(error, EngineDeadError)]
        assert len(dead) == 2 and all(
            "replica 1's process ended with exit code -9 (killed by SIGKILL" in str(error) for error in dead
        )
        assert sum(isinstance(output, RequestOutput) and len(output.outputs[0].token_ids) == 600 for output in found) == 2
        await engine.check_health()
        for _ in range(4):
            assert (await last(engine.generate([1], token_params(max_tokens=3)))).finished
        assert set(await by_replica(engine, "vllm:generation_tokens")) == {"0"}
        assert await engine.reset_prefix_cache()
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="replica 0's process"):
            await last(long_stream(engine))
        with pytest.raises(EngineDeadError, match=r"replica 0's process .*; replica 1's process"):
            await engine.check_health()
        with pytest.raises(EngineDeadError):
            await engine.report()

    try:
        run(main(), 120)
    finally:
        engine.shutdown()


def test_the_router_forgets_the_places_of_replicas_that_are_no_more() -> None:
    engine = start(null_config(dp=3, router="prefix_aware"))
    replicas = replicas_of(engine)
    prompts = [[i] * 128 for i in range(3)]

    async def place(prompt: list[int]) -> int:
        stream = engine.generate(prompt, token_params(max_tokens=20, ignore_eos=True))
        await anext(stream)
        [(index, _)] = [(i, c) for i, c in enumerate(replicas._clients) if c.in_flight.num_running]
        await last(stream)
        return index

    async def main() -> None:
        assert [await place(prompt) for prompt in prompts] == [0, 1, 2] == [await place(prompt) for prompt in prompts]
        os.kill(pids_of(replicas)[0], signal.SIGKILL)
        await until_true(lambda: replicas._clients[0].is_dead)
        found = [await place(prompt) for prompt in prompts[1:]]
        assert found == [1, 2] == [await place(prompt) for prompt in prompts[1:]]

    try:
        run(main(), 120)
    finally:
        engine.shutdown()


def test_a_replica_that_hangs_is_ended() -> None:
    engine = start(null_config(step_timeout_s=1.0))
    pids = pids_of(replicas_of(engine))

    async def main() -> None:
        streams = [long_stream(engine) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        os.kill(pids[0], signal.SIGSTOP)
        with pytest.raises(EngineDeadError, match=r"replica 0 hangs: it said nothing for 1 s \(parallel.step_timeout_s\)"):
            await last(streams[0])
        await streams[1].aclose()

    try:
        run(main())
    finally:
        engine.shutdown()
    assert_gone(pids)


def test_metrics_do_not_wait_for_a_replica_that_hangs() -> None:
    engine = start(null_config(step_timeout_s=1.0))

    async def main() -> None:
        os.kill(pids_of(replicas_of(engine))[0], signal.SIGSTOP)
        assert set(await by_replica(engine, "vllm:num_requests_running")) == {"1"}
        assert not engine.errored

    try:
        run(main())
    finally:
        engine.shutdown()


def test_a_replica_without_work_may_be_silent() -> None:
    engine = start(null_config(step_timeout_s=0.2))
    try:
        run(engine.metrics())
        time.sleep(1.0)
        assert run(last(engine.generate([1], token_params(max_tokens=3)))).finished
    finally:
        engine.shutdown()


def exit_as_replica_one(config: EngineConfig, pipe: Any) -> None:
    if config.parallel.first_device == 1:
        engine_processes.exit_at_start(config, pipe)
    engine_processes.load_forever(config, pipe)


def test_a_replica_that_cannot_start_ends_the_others() -> None:
    clients: list[Any] = []
    init = framework.engine_client.EngineClient.__init__

    def remember(self: Any, *given: Any, **named: Any) -> None:
        clients.append(self)
        init(self, *given, **named)

    with null_processes(exit_as_replica_one), pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework.engine_client.EngineClient, "__init__", remember)
        with pytest.raises(EngineDeadError, match="while it started, replica 1's process ended with exit code 3"):
            AsyncEngine(null_config())
    assert len(clients) == 2 and not any(client._process.is_alive() for client in clients)


def test_replicas_that_are_late_are_named() -> None:
    with null_processes(engine_processes.load_forever), pytest.raises(EngineDeadError, match="of 2 replicas, 0, 1 were not ready"):
        AsyncEngine(null_config(), start_timeout_s=0.1)


def assert_gone(pids: list[int]) -> None:
    """Soon."""
    for pid in pids:
        for _ in range(400):
            stat = Path(f"/proc/{pid}/stat")
            if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"process {pid} is left")


def test_nothing_is_left_after_a_shutdown_or_when_the_driver_is_killed() -> None:
    code = (
        "import sys\nfrom tests.framework.test_replicas import *\n"
        "engine = start(null_config())\nprint(*pids_of(replicas_of(engine)), flush=True)\n"
        "if sys.argv[1] == 'shutdown':\n    engine.shutdown()\nelse:\n    time.sleep(1000)\n"
    )
    for ending in ("shutdown", "kill"):
        driver = subprocess.Popen([sys.executable, "-c", code, ending], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(pids) == 2
        if ending == "kill":
            driver.kill()
        driver.wait(60)
        assert_gone(pids)


# LLM


def test_llm_goes_on_after_what_goes_wrong() -> None:
    with null_processes():
        llm = LLM(null_config(router="round_robin"))
    try:
        front = llm._front
        assert isinstance(front, framework.replicated_engine.ReplicatedEngine)
        short = SamplingParams(max_tokens=4, detokenize=False, ignore_eos=True)
        too_long = {"prompt_token_ids": [1] * 9000}
        with pytest.raises(ValueError, match="the prompt has 9000 tokens"):
            llm.generate([[1], too_long, [2]], short, use_tqdm=False)  # type: ignore[list-item]
        with pytest.raises(ValueError, match="token id 50"):
            llm.generate([[50]], short, use_tqdm=False)
        with pytest.raises(RuntimeError, match=r"prompt 1 of 2 failed: .*the kernel failed"):
            llm.generate([[1], [engine_processes.FAULTY]], short, use_tqdm=False)
        assert not front.has_unfinished()
        with pytest.raises(RuntimeError, match="2 engines, each in a process of its own"):
            _ = llm.engine
        outputs = llm.generate([[i] for i in range(8)], short, use_tqdm=False)
        assert [output.prompt_token_ids for output in outputs] == [[i] for i in range(8)]
        assert all(len(output.outputs[0].token_ids) == 4 for output in outputs)
        assert llm.reset_prefix_cache()
        counted = [m for m in llm.get_metrics() if isinstance(m, Counter) and m.name == "vllm:generation_tokens"]
        assert len(counted) == 2 and front.stats().num_output_tokens == sum(m.value for m in counted)
        front.add_request("late", [1], token_params(max_tokens=2), arrival_s=front.clock.now() - 100)
        while not (found := front.step()) or not found[-1].finished:
            assert front.places.keys() == {output.request_id for output in found}
        assert found[-1].metrics is not None and front.places.keys() == {"late"} and not front.has_unfinished()
        histograms = [m for m in llm.get_metrics() if isinstance(m, Histogram) and m.name == "vllm:e2e_request_latency_seconds"]
        assert sum(m.sum for m in histograms) > 100
        assert not front.step() and not front.places
        with pytest.raises(EngineDeadError, match=r"replica [01] failed: .*the device fell off the bus"):
            llm.generate([[engine_processes.LOST], [1]], short, use_tqdm=False)
        assert len(llm.generate([[i] for i in range(4)], short, use_tqdm=False)) == 4, "the other replica serves on"
    finally:
        llm.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        llm.generate([[1]])


def test_priorities_pass_the_front() -> None:
    config = null_config(router="round_robin")
    config.scheduler.max_num_seqs = 1
    with null_processes():
        front = framework.replicated_engine.ReplicatedEngine(config)
    try:
        ended: list[str] = []
        for name, priority, length in (("first", 0, 300), ("late", 9, 40), ("soon", 5, 40)):
            for replica in range(2):
                params = token_params(max_tokens=length, ignore_eos=True)
                front.add_request(f"{name} {replica}", [1, 2], params, priority=priority)
        while front.has_unfinished():
            ended += [output.request_id for output in front.step() if output.finished]
        for replica in range(2):
            assert [name for name in ended if name.endswith(str(replica))] == [f"{n} {replica}" for n in ("first", "soon", "late")]
    finally:
        front.shutdown()


# What each replica is told


def test_replicas_lie_side_by_side() -> None:
    parallel = ParallelConfig(tp=2, pp=2, dp=3, port=5000, first_device=4)
    config = EngineConfig(executor=ExecutorConfig("distributed"), parallel=parallel, router="prefix_aware")
    found = replica_configs(config)
    assert [(own.parallel.first_device, own.parallel.port, own.parallel.dp) for own in found] == [
        (4, 5000, 1),
        (8, 5001, 1),
        (12, 5002, 1),
    ]
    assert all((own.parallel.tp, own.parallel.pp, own.seed) == (2, 2, config.seed) for own in found)
    for own in found:
        own.validate()
    simulated = EngineConfig(executor=ExecutorConfig("simulated", noise=0.1), parallel=ParallelConfig(dp=2))
    assert len({own.seed for own in replica_configs(simulated)}) == 2, "noise of their own"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data_parallel_size": 0}, "parallel.dp=0 .* from 1 to 4096"),
        ({"data_parallel_size": -2}, "parallel.dp=-2"),
        ({"data_parallel_size": 2, "router": "nearest"}, "router='nearest' .* round_robin"),
        ({"data_parallel_size": "2"}, "parallel.dp='2' .* of type int"),
        ({"data_parallel_size": "2", "enable_expert_parallel": True}, "parallel.dp='2' .* of type int"),
        ({"data_parallel_size": 2, "enable_expert_parallel": True}, "parallel.ep=2 cannot work: the model has no experts"),
        ({"data_parallel_size": 4096}, r"parallel.dp=4096 cannot work: this machine .* run 4096 processes .* at most .8 each."),
        (
            {"data_parallel_size": 2048, "tensor_parallel_size": 2, "device": "cpu"},
            "parallel.tp=2, parallel.dp=2048 cannot work: this machine with .* 4096 processes",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_process_is_started(given: dict[str, Any], message: str) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a process was started")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=message):
        patch.setattr(framework.engine_client.EngineClient, "__init__", never)
        LLM("tiny", **given)
