"""What can go wrong between callers and the engine's process: ids, loops, messages, failures, ends. Without a model: fast."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import framework.build
import framework.engine_client
from framework import AsyncEngine, EngineConfig, RequestOutput, RequestOutputKind
from framework.clock import Clock, VirtualClock, WallClock
from framework.config import CacheConfig, SchedulerConfig
from framework.engine.errors import EngineDeadError
from framework.engine.prompts import EngineInput
from framework.engine_process import Add, _handle
from framework.sampling_params import SamplingParams
from framework.streams import Reply

from . import engine_processes
from .engines import make_engine, token_params

ROOT = Path(__file__).parents[2]
PROMPT = [1, 2, 3]
LONG = 4000
STEP_S = 0.002


def null_config() -> EngineConfig:
    scheduler = SchedulerConfig(policy="priority", max_num_seqs=64, max_num_batched_tokens=512)
    return EngineConfig(cache=CacheConfig(block_size=16, num_blocks=4000), scheduler=scheduler)


def start(main: Callable[..., None], **given: Any) -> AsyncEngine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework.engine_client, "run_engine", main)
        patch.setattr(framework.build, "input_processor", lambda *_: engine_processes.inputs())
        return AsyncEngine(null_config(), **given)


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = start(partial(engine_processes.serve_null, step_s=STEP_S))
    yield engine
    engine.shutdown()


@pytest.fixture
def mortal() -> Iterator[AsyncEngine]:
    """For tests that end it."""
    engine = start(partial(engine_processes.serve_null, step_s=STEP_S))
    yield engine
    engine.shutdown()


def pid_of(engine: AsyncEngine) -> int:
    pid = engine._client._process.pid
    assert pid is not None
    return pid


class Stopped:
    """While it lasts, the engine's process stands still."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.pid = pid_of(engine)

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


def run(main: Any, timeout_s: float = 30) -> Any:
    """In a loop of its own; a hang is a failure."""
    return asyncio.run(asyncio.wait_for(main, timeout_s))


async def collect(engine: AsyncEngine, prompt: Any = PROMPT, params: Any = None, **given: Any) -> list[RequestOutput]:
    return [output async for output in engine.generate(prompt, params or token_params(max_tokens=4), **given)]


async def tokens(engine: AsyncEngine, **given: Any) -> list[int]:
    return (await collect(engine, params=token_params(**given)))[-1].outputs[0].token_ids


async def idle_stats(engine: AsyncEngine) -> dict[str, Any]:
    """Once nothing runs; fails if that takes long."""
    for _ in range(500):
        stats = (await engine.report())["stats"]
        if not stats["num_running"] + stats["num_waiting"]:
            assert stats["kv_usage"] == 0, "blocks are free"
            return stats
        await asyncio.sleep(0.01)
    raise AssertionError(f"requests still run: {stats}")


async def assert_aborted(engine: AsyncEngine, leave: Any) -> None:
    """``leave`` starts a request of LONG tokens and leaves it: it must end long before it is done by itself."""
    before = (await engine.report())["stats"]["num_output_tokens"]
    await leave
    assert 0 < (await idle_stats(engine))["num_output_tokens"] - before < LONG


def long_stream(engine: AsyncEngine, **given: Any) -> Any:
    return engine.generate(PROMPT, token_params(max_tokens=LONG, ignore_eos=True), **given)


# Requests that end early


def test_leaving_a_stream_aborts_its_request(engine: AsyncEngine) -> None:
    async def leave() -> None:
        async for _ in long_stream(engine):
            break

    run(assert_aborted(engine, leave()))


def test_a_stream_that_is_forgotten_aborts_its_request(engine: AsyncEngine) -> None:
    async def forget() -> None:
        stream = long_stream(engine)
        await anext(stream)
        del stream
        gc.collect()

    run(assert_aborted(engine, forget()))


def test_a_cancelled_consumer_aborts_its_request(engine: AsyncEngine) -> None:
    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collect(engine, params=token_params(max_tokens=LONG)), 0.1)

    run(assert_aborted(engine, cancel()))


def test_a_stream_that_nobody_iterates_asks_for_nothing(engine: AsyncEngine) -> None:
    async def main() -> None:
        stream = long_stream(engine, request_id="never")
        del stream
        assert len(await tokens(engine, max_tokens=3)) == 3
        await collect(engine, request_id="never")
        await idle_stats(engine)

    run(main())


def test_abort_ends_streams_with_a_last_output(engine: AsyncEngine) -> None:
    async def main() -> None:
        streams = [long_stream(engine, request_id=name) for name in ("a", "b")]
        for stream in streams:
            await anext(stream)
        await engine.abort("unknown")
        await engine.abort(["a", "unknown", "b"])
        for stream in streams:
            last = [output async for output in stream][-1]
            assert last.finished and last.outputs[0].finish_reason == "abort"
        await idle_stats(engine)

    run(main())


# Ids


def test_a_request_id_used_again_gets_the_outputs_of_its_own_request(engine: AsyncEngine) -> None:
    async def main() -> None:
        expected = await tokens(engine, max_tokens=6, seed=2)
        for _ in range(20):
            stream = engine.generate(PROMPT, token_params(max_tokens=LONG, seed=1), "same")
            await anext(stream)
            await stream.aclose()
            outputs = await collect(engine, params=token_params(max_tokens=6, seed=2), request_id="same")
            assert outputs[-1].outputs[0].token_ids == expected
            assert {output.request_id for output in outputs} == {"same"}

    run(main())


def test_ids_of_running_requests_are_refused_and_others_made_up(engine: AsyncEngine) -> None:
    async def main() -> None:
        stream = long_stream(engine, request_id="request-0")
        await anext(stream)
        with pytest.raises(ValueError, match="'request-0' is running"):
            await collect(engine, request_id="request-0")
        assert len({(await collect(engine))[0].request_id for _ in range(3)} | {"request-0"}) == 4
        assert not (await anext(stream)).finished, "the refused one did no harm"
        await stream.aclose()
        await collect(engine, request_id="request-0")

    run(main())


# What one request brings


class Panic(BaseException):
    """As pyo3 raises it: no Exception."""


def panic() -> Add:
    raise Panic("at the tokenizer")


class Unreadable:
    """Pickles, and cannot be read again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.parametrize(
    "given",
    [{"params": {"max_tokens": 3}}, {"params": [token_params()]}, {"priority": "high"}, {"priority": float("nan")}, {"prompt": 5}],
)
def test_wrong_types_are_refused_in_the_caller_and_harm_nobody(engine: AsyncEngine, given: dict) -> None:
    async def main() -> None:
        other = long_stream(engine)
        await anext(other)
        with pytest.raises((ValueError, TypeError)):
            await collect(engine, **given)
        assert not (await anext(other)).finished
        assert await tokens(engine, max_tokens=3, seed=5) == await tokens(engine, max_tokens=3, seed=5)
        await other.aclose()

    run(main())


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (lambda: Add(None, token_params(), 0, 0.0), "a prompt must be"),  # type: ignore[arg-type]
        (lambda: Add(EngineInput([1]), {"max_tokens": 3}, 0, 0.0), "must be SamplingParams"),  # type: ignore[arg-type]
        (lambda: "a string", "takes Add, Abort and Call, not str"),
        (lambda: Unreadable(), "no number"),
        (lambda: lambda: 0, "pickle"),
        (lambda: 1 // 0, "division"),
        (lambda: panic(), "Panic: at the tokenizer"),
    ],
)
def test_a_message_that_fails_is_answered_and_the_engine_serves_on(
    engine: AsyncEngine, message: Callable[[], Any], error: str
) -> None:
    async def main() -> None:
        other = long_stream(engine)
        await anext(other)
        reply = Reply()
        engine._client.open(reply, message)
        with pytest.raises(Exception, match=error):
            await reply.future
        assert not (await anext(other)).finished
        await other.aclose()
        assert len(await tokens(engine, max_tokens=3)) == 3

    run(main())


def test_what_takes_time_in_the_caller_is_not_done_in_its_loop(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def complete(params: SamplingParams, complete: Any = engine.inputs.params) -> SamplingParams:
        threads.append(threading.current_thread())
        return complete(params)

    monkeypatch.setattr(engine.inputs, "params", complete)
    assert run(collect(engine))[-1].finished
    assert len(threads) == 1 and threads[0] is not threading.current_thread(), "bad words are tokenized there"


def test_an_error_in_the_process_says_where_it_happened(engine: AsyncEngine) -> None:
    async def main() -> None:
        reply = Reply()
        engine._client.open(reply, lambda: "a string")  # type: ignore[arg-type, return-value]
        with pytest.raises(TypeError) as caught:
            await reply.future
        assert "In the engine's process" in caught.value.__notes__[0] and "engine_process.py" in caught.value.__notes__[0]

    run(main())


def test_a_step_that_fails_ends_its_requests_with_the_cause_and_no_others(engine: AsyncEngine) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"'r' failed: .*the kernel failed"):
            await collect(engine, [engine_processes.FAULTY], request_id="r")
        assert len(await tokens(engine, max_tokens=3)) == 3
        await engine.check_health()
        await idle_stats(engine)

    run(main())


# Event loops


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what the loop's end leaves pending
def test_answers_may_outlive_the_event_loop_that_asked(engine: AsyncEngine) -> None:
    loop = asyncio.new_event_loop()
    with Stopped(engine):
        report = loop.create_task(engine.report())
        stream = long_stream(engine, request_id="of a closed loop")
        first = loop.create_task(anext(stream))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
    assert run(engine.report())["stats"]
    run(idle_stats(engine))  # the request whose loop is gone was aborted
    assert len(run(tokens(engine, max_tokens=3))) == 3
    del report, first, stream
    gc.collect()
    run(collect(engine, request_id="of a closed loop"))


def test_a_cancelled_report_harms_nobody(engine: AsyncEngine) -> None:
    async def main() -> None:
        with Stopped(engine), pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.report(), 0.05)
        assert (await engine.report())["stats"]

    run(main())


def test_two_event_loops_at_once(engine: AsyncEngine) -> None:
    expected = run(tokens(engine, max_tokens=50, seed=3))
    found: list[list[int]] = []

    async def several() -> None:
        found.extend(await asyncio.gather(*(tokens(engine, max_tokens=50, seed=3) for _ in range(5))))

    threads = [threading.Thread(target=run, args=(several(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 10


def test_sending_never_blocks_the_loop_and_keeps_the_order(engine: AsyncEngine) -> None:
    async def main() -> float:
        requests = [asyncio.create_task(collect(engine, [1] * 8000, request_id=f"big-{i}")) for i in range(100)]
        asked_s = time.perf_counter()
        await asyncio.sleep(0.05)
        for i in range(100):
            await engine.abort(f"big-{i}")
        blocked_s = time.perf_counter() - asked_s
        os.kill(pid, signal.SIGCONT)
        for outputs in await asyncio.gather(*requests):
            assert outputs[-1].outputs[0].finish_reason == "abort", "an abort comes after its request"
        return blocked_s

    pid = pid_of(engine)
    rescue = threading.Timer(5, os.kill, (pid, signal.SIGCONT))
    rescue.start()
    with Stopped(engine):
        assert run(main()) < 2, "the pipe was full, and the loop waited for it"
    rescue.cancel()


def test_who_falls_behind_finds_cumulative_outputs_in_one(engine: AsyncEngine) -> None:
    async def main(kind: RequestOutputKind) -> list[RequestOutput]:
        stream = engine.generate(PROMPT, token_params(max_tokens=40, ignore_eos=True, output_kind=kind))
        outputs = [await anext(stream)]
        time.sleep(0.5)  # the loop itself is busy
        return outputs + [output async for output in stream]

    cumulative, deltas = run(main(RequestOutputKind.CUMULATIVE)), run(main(RequestOutputKind.DELTA))
    assert len(cumulative) < 10 and len(deltas) == 40
    assert cumulative[-1].outputs[0].token_ids == [t for output in deltas for t in output.outputs[0].token_ids]
    assert len(cumulative[0].outputs[0].token_ids) == 1, "an output does not change once it was given"


def test_a_thousand_streams_at_once(engine: AsyncEngine) -> None:
    async def main() -> list[list[int]]:
        return await asyncio.gather(*(tokens(engine, max_tokens=3, seed=i % 7) for i in range(1000)))

    found = run(main(), 60)
    assert all(found[i] == found[i % 7] and len(found[i]) == 3 for i in range(1000))


def test_reset_prefix_cache_waits_for_nobody(engine: AsyncEngine) -> None:
    async def main() -> None:
        stream = long_stream(engine)
        await anext(stream)
        assert not await engine.reset_prefix_cache()
        await stream.aclose()
        await idle_stats(engine)
        assert await engine.reset_prefix_cache()

    run(main())


# The end of the process


async def outcomes(engine: AsyncEngine, end: Callable[[], None]) -> list[Any]:
    """Of two streams and a report that wait when ``end`` is called."""
    streams = [long_stream(engine) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    report = asyncio.create_task(engine.report())

    async def rest(stream: Any) -> list[RequestOutput]:
        return [output async for output in stream]

    waiting = [asyncio.create_task(rest(stream)) for stream in streams]
    await asyncio.sleep(0)
    end()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(report, return_exceptions=True)  # the answer may have come in time
    return results


def assert_dead(engine: AsyncEngine, text: str) -> None:
    assert engine.errored and not engine.is_running and text in str(engine.dead_error)
    for use in (engine.check_health, engine.report, engine.reset_prefix_cache, partial(collect, engine)):
        with pytest.raises(EngineDeadError, match=text):
            run(use())
    run(engine.abort("anything"))


def test_a_living_engine_is_healthy(engine: AsyncEngine) -> None:
    run(engine.check_health())
    assert engine.is_running and not engine.errored and engine.dead_error is None
    os.kill(pid_of(engine), signal.SIGINT)  # Ctrl-C reaches the whole group; the parent decides when to end
    assert len(run(tokens(engine, max_tokens=3))) == 3


def test_all_who_wait_hear_of_a_killed_process_and_its_exit_code(mortal: AsyncEngine) -> None:
    for found in run(outcomes(mortal, lambda: os.kill(pid_of(mortal), signal.SIGKILL))):
        assert isinstance(found, EngineDeadError) and "exit code -9" in str(found) and "SIGKILL" in str(found)
    assert_dead(mortal, "exit code -9")


def test_shutdown_ends_streams_and_may_be_called_again(mortal: AsyncEngine) -> None:
    for found in run(outcomes(mortal, mortal.shutdown)):
        assert isinstance(found, EngineDeadError) and "shut down" in str(found)
    assert mortal._client._process.exitcode == 0
    mortal.shutdown()
    assert_dead(mortal, "shut down")


def test_a_process_that_hangs_is_killed_at_shutdown(mortal: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework.engine_client, "SHUTDOWN_TIMEOUT_S", 0.1)
    os.kill(pid_of(mortal), signal.SIGSTOP)
    mortal.shutdown()
    assert mortal._client._process.exitcode == -signal.SIGKILL


def test_a_lost_device_is_the_end_and_the_cause(mortal: AsyncEngine) -> None:
    async def main() -> list[Any]:
        lost = collect(mortal, [engine_processes.LOST])
        return await asyncio.gather(tokens(mortal, max_tokens=LONG), lost, return_exceptions=True)

    for found in run(main()):
        assert isinstance(found, EngineDeadError) and "the device fell off the bus" in str(found)
    assert_dead(mortal, "the device fell off the bus")


def test_an_engine_that_is_dropped_ends_its_process() -> None:
    engine = start(engine_processes.serve_null)
    run(tokens(engine, max_tokens=3))
    client = engine._client
    del engine
    gc.collect()
    client._reader.join(20)
    assert client._process.exitcode == 0


@pytest.mark.parametrize(
    ("main", "given", "error", "text"),
    [
        (engine_processes.exit_at_start, {}, EngineDeadError, "exit code 3"),
        (engine_processes.be_killed_at_start, {}, EngineDeadError, "exit code -9 .*SIGKILL"),
        (engine_processes.load_forever, {"start_timeout_s": 0.1}, EngineDeadError, "not ready after 0.1 s"),
        (engine_processes.fail_weirdly, {}, RuntimeError, "WeirdError: odd thing"),
    ],
)
def test_a_start_that_fails_says_how(main: Callable[..., None], given: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        start(main, **given)


def test_the_process_ends_with_its_parent_even_while_it_loads() -> None:
    code = (
        "from framework import EngineConfig, engine_client\nfrom tests.framework import engine_processes\n"
        "engine_client.run_engine = engine_processes.load_forever\nengine_client.connect(EngineConfig(), 1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the process outlived its parent")


@pytest.mark.parametrize(("clock", "under_way_s"), [(WallClock(), 5.0), (VirtualClock(), 0.0)])
def test_a_request_arrives_when_it_was_asked_for(clock: Clock, under_way_s: float) -> None:
    """However long the engine was busy before it looked; on a virtual clock nothing is under way."""
    engine = make_engine()
    engine.clock = clock
    pipe, _ = multiprocessing.Pipe()
    before_s = clock.now()
    _handle(engine, pipe, {}, "a", pickle.dumps(Add(EngineInput([1, 2]), token_params(), 0, time.time() - 5)))
    arrival_s = engine.processor.groups["a"].metrics.arrival_s
    assert arrival_s == pytest.approx(before_s - under_way_s, abs=0.5)
