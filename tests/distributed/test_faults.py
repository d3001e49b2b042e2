"""Workers that are killed, stopped or left alone: what users see, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import framework.build
import framework.engine_client
from framework import AsyncEngine, EngineConfig
from framework.distributed.executor import DistributedExecutor
from framework.distributed.messages import Factory
from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError, EngineDeadError
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput
from framework.engine_client import EngineClient, connect
from framework.engine_process import run_engine

from ..framework.engines import finish, token_params
from .ranks import KILLED, STOPPED, dying_start, endless_start, make_config, make_engine, null_rank, stopped_start

ROOT = Path(__file__).parents[2]
LIMIT_S = 5.0


def pids(engine: Engine) -> list[int]:
    assert isinstance(engine.executor, DistributedExecutor)
    return [worker.pid for worker in engine.executor._workers._workers]  # type: ignore[attr-defined]


def runs(pid: int) -> bool:
    """Not so of one that ended, and that nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(done: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    end_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def shared_memory() -> set[str]:
    """Without the semaphores of processes beside this one, which exist for a moment."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def assert_ends(engine: Engine, fault: int, rank: int, limit_s: float) -> list[str]:
    """In time, with nothing left. Returns what the requests are told."""
    workers, before = pids(engine), shared_memory()
    for i in range(3):
        engine.add_request(f"running {i}", [1, 2, 3], token_params(max_tokens=5000, ignore_eos=True))
    for _ in range(5):
        engine.step()
    engine.add_request("fault", [fault, rank, 0], token_params())
    engine.add_request("waiting", [1] * 200, token_params())
    start_s = time.monotonic()
    errors = [output.error or "" for output in finish(engine).values()]
    assert time.monotonic() - start_s < limit_s
    assert len(errors) == 5 and isinstance(engine.errored, DeviceLostError)
    assert not any(map(runs, workers)) and shared_memory() <= before
    with pytest.raises(EngineDeadError, match=f"rank {rank} "):
        engine.step()
    return errors


@pytest.mark.parametrize("num_rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named_and_the_next_engine_starts(num_rounds: int) -> None:
    for _ in range(num_rounds):
        for rank in (0, 1):
            for error in assert_ends(make_engine(make_config(2)), KILLED, rank, LIMIT_S):
                assert f"DeviceLostError: rank {rank} (process " in error and "killed by SIGKILL" in error


def test_a_rank_that_hangs_in_a_step_is_found_by_the_timeout() -> None:
    for error in assert_ends(make_engine(make_config(2, timeout_s=1.0)), STOPPED, 1, 1.0 + LIMIT_S):
        assert "was not done within 1 s (parallel.step_timeout_s): rank 1 (process " in error and "no sign of life" in error


def test_a_rank_that_hangs_while_others_go_on_is_found_too() -> None:
    engine = make_engine(make_config(2, timeout_s=0.5), null_rank)
    engine.add_request("r", [1, 2, 3], token_params(max_tokens=8000, ignore_eos=True))
    engine.step()
    os.kill(pids(engine)[1], signal.SIGSTOP)
    end_s = time.monotonic() + LIMIT_S
    while engine.errored is None and time.monotonic() < end_s:
        time.sleep(0.01)
        engine.step()
    assert "rank 1 (process " in str(engine.errored) and "within 0.5 s (parallel.step_timeout_s)" in str(engine.errored)


def test_a_rank_that_dies_while_no_step_runs_ends_the_next_one() -> None:
    engine = make_engine(make_config(2), null_rank)
    doomed = pids(engine)[1]
    os.kill(doomed, signal.SIGKILL)
    wait_until(lambda: not runs(doomed))
    engine.add_request("r", [1, 2, 3], token_params())
    assert "killed by SIGKILL" in str(finish(engine)["r"].error)


def test_a_rank_that_dies_while_it_starts_is_told_of() -> None:
    with pytest.raises(DeviceLostError, match=r"rank 1 .process \d+. ended with exit code -9 .killed by SIGKILL"):
        make_engine(make_config(2), dying_start)


@pytest.mark.parametrize(("factory", "why"), [(stopped_start, "gives no sign of life"), (endless_start, ".*")])
def test_a_rank_that_hangs_while_it_starts_is_found_by_the_timeout(factory: Factory, why: str) -> None:
    config = make_config(2)
    config.parallel.start_timeout_s = 3.0
    text = r"ranks were not ready within 3 s .parallel.start_timeout_s.: .*rank 1 .process (\d+).; .*" + why
    with pytest.raises(DeviceLostError, match=text) as found:
        make_engine(config, factory)
    match = re.search(text, str(found.value))
    assert match is not None and not runs(int(match[1]))


def test_a_rank_that_is_stopped_does_not_outlive_an_engine_that_was_forgotten() -> None:
    engine = make_engine(make_config(2), null_rank)
    doomed = pids(engine)
    os.kill(doomed[1], signal.SIGSTOP)
    del engine
    gc.collect()
    try:
        wait_until(lambda: not any(map(runs, doomed)))
    finally:
        for pid in filter(runs, doomed):
            os.kill(pid, signal.SIGKILL)


def test_what_a_rank_said_last_is_heard() -> None:
    executor = DistributedExecutor(make_config(1), null_rank)
    handle, [worker] = executor.submit(StepInput(3, [], [], [])), executor._workers._workers
    assert worker.pipe.poll(60)
    os.kill(worker.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert worker.join(LIMIT_S)
    assert handle.result().step_id == 3
    with pytest.raises(DeviceLostError, match=r"rank 0 .*killed by SIGKILL"):
        executor.submit(StepInput(4, [], [], []))


HEAD = """
import os, sys, time
from tests.distributed.ranks import make_config, make_engine, KILLED, null_rank
from tests.framework.engines import token_params
from tests.distributed.test_faults import pids
"""


def started(code: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A script that prints process ids, and the ids."""
    process = subprocess.Popen([sys.executable, "-c", HEAD + code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


def test_workers_end_with_their_driver_even_in_a_step_that_never_ends() -> None:
    code = """
engine = make_engine(make_config(2))
print(*pids(engine), flush=True)
engine.add_request("r", [KILLED, 7, 0], token_params())
engine.step()
"""
    process, workers = started(code)
    with process:
        assert len(workers) == 2 and all(map(runs, workers))
        process.kill()
    wait_until(lambda: not any(map(runs, workers)))


def test_a_script_that_forgets_its_engine_ends_and_its_workers_with_it() -> None:
    code = "engine = make_engine(make_config(2), null_rank); print(*pids(engine), 'torch' in sys.modules and 1 or 0, flush=True)"
    process, (*workers, has_torch) = started(code)
    with process:
        assert process.wait(2 * LIMIT_S) == 0
    wait_until(lambda: not any(map(runs, workers)))
    assert not has_torch, "an executor of workers without a model needs none"


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    """Workers import it, and would start workers of their own."""
    script = tmp_path / "script.py"
    script.write_text(HEAD + "engine = make_engine(make_config(2), null_rank)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith('A script builds its engine below `if __name__ == "__main__":`')


def test_a_forked_copy_of_the_engine_has_no_workers_and_ends_none() -> None:
    code = """
engine = make_engine(make_config(2), null_rank)
child = os.fork()
engine.add_request("r", [1, 2, 3], token_params())
if not child:
    engine.step()
    print(engine.errored, flush=True)
    engine.shutdown()
    sys.exit()
os.waitpid(child, 0)
while engine.has_unfinished():
    error = [output.error for output in engine.step()]
print(error, flush=True)
"""
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    refused, served = done.stdout.splitlines()
    assert "belong to the process that built the engine" in refused and served == "[None]"


# Behind the engine's process


def serve_ranks(config: EngineConfig, pipe: Connection, ids: Path) -> None:
    """Main function of the engine's process."""

    def build(config: EngineConfig) -> Engine:
        engine = make_engine(config)
        ids.write_text(" ".join(map(str, [os.getpid(), *pids(engine)])))
        return engine

    framework.build.build_engine = build
    run_engine(config, pipe)


def start_client(ids: Path, timeout_s: float = 60.0) -> EngineClient:
    """Needs no torch, which is slow to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework.engine_client, "run_engine", partial(serve_ranks, ids=ids))
        return connect(make_config(2, timeout_s=timeout_s), 600.0)


def start_async(ids: Path) -> AsyncEngine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework.engine_client, "run_engine", partial(serve_ranks, ids=ids))
        patch.setattr(framework.build, "input_processor", lambda *_: InputProcessor(None, {}, ()))
        return AsyncEngine(make_config(2))


def test_streams_of_an_engine_process_end_with_the_rank_that_was_killed(tmp_path: Path) -> None:
    engine = start_async(tmp_path / "ids")
    processes = [int(word) for word in (tmp_path / "ids").read_text().split()]

    async def main() -> None:
        async def consume() -> None:
            async for _ in engine.generate([1, 2, 3], token_params(max_tokens=5000, ignore_eos=True)):
                seen.set()

        seen = asyncio.Event()
        streams = [asyncio.create_task(consume()) for _ in range(4)]
        await seen.wait()
        os.kill(processes[-1], signal.SIGKILL)
        for stream in streams:
            with pytest.raises((EngineDeadError, RuntimeError), match=r"rank 1 .process .*killed by SIGKILL"):
                await asyncio.wait_for(stream, LIMIT_S)

    asyncio.run(main())
    wait_until(lambda: engine.errored and not any(map(runs, processes)))
    engine.shutdown()


@pytest.mark.parametrize(
    ("harm", "timeout_s", "found"), [("SIGKILL", 3600.0, "killed by SIGKILL"), ("SIGSTOP", 1.0, "no sign of life within 1 s")]
)
def test_a_rank_that_ends_or_hangs_while_nobody_asks_anything_is_found(
    harm: str, timeout_s: float, found: str, tmp_path: Path
) -> None:
    client = start_client(tmp_path / "ids", timeout_s)
    processes = [int(word) for word in (tmp_path / "ids").read_text().split()]
    os.kill(processes[-1], signal.Signals[harm])
    wait_until(lambda: client.is_dead and not any(map(runs, processes)))
    assert re.search(rf"rank 1 .process \d+. .*{found}", str(client.dead_error))
    client.shutdown()


def test_a_forked_copy_of_a_client_has_no_engine_and_ends_none(tmp_path: Path) -> None:
    code = f"""
from collections import deque
from pathlib import Path
from framework.engine_process import Call
from framework.replicated_engine import Inbox, _Waiting
from tests.distributed.test_faults import start_client
client = start_client(Path({str(tmp_path / "ids")!r}))
child = os.fork()
if not child:
    print(client.dead_error, flush=True)
    client.shutdown()
    sys.exit()
os.waitpid(child, 0)
inbox, answers = Inbox(), deque()
client.open(_Waiting(inbox, answers), lambda: Call("reset_prefix_cache"))
while not answers:
    inbox.run(None)
print(answers.pop(), flush=True)
client.shutdown()
"""
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    refused, served = done.stdout.splitlines()
    assert "belongs to the process that started it" in refused and served == "True" and not done.stderr


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(0)"])
def test_an_engine_process_and_its_workers_end_with_the_caller(end: str, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.distributed.test_faults import start_client
client = start_client(Path({str(tmp_path / "ids")!r}))
print(Path({str(tmp_path / "ids")!r}).read_text(), flush=True)
{end}
"""
    process, processes = started(code)
    with process:
        assert len(processes) == 3
        process.wait(2 * LIMIT_S)
    wait_until(lambda: not any(map(runs, processes)))
