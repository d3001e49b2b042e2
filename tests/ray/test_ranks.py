"""Ranks that are actors of Ray: they give what one process gives, their ends are told, and nothing is left of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from typing import Any, cast

import pytest

from framework import EngineConfig
from framework.build import build_engine
from framework.config import ExecutorConfig, ParallelConfig
from framework.distributed.executor import DistributedExecutor
from framework.engine.errors import DeviceLostError

from ..distributed.ranks import KILLED, dying_start, make_config, make_engine, null_rank
from ..distributed.test_faults import HEAD, LIMIT_S, ROOT, pids, runs, wait_until
from ..distributed.test_tokens import JOBS, expected, served
from ..framework.engines import finish, token_params
from .clusters import actors, groups, nothing_is_left

pytestmark = pytest.mark.ray


def test_actors_give_what_one_process_gives(cluster: Any) -> None:
    """Tokens, log-probabilities, ends."""
    assert served((2, 1), JOBS, backend="ray") == expected()
    wait_until(nothing_is_left)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_next_engine_starts(cluster: Any, rank: int) -> None:
    engine = make_engine(make_config(2, "ray"))
    workers = pids(engine)
    engine.add_request("running", [1, 2, 3], token_params(max_tokens=5000, ignore_eos=True))
    engine.step()
    engine.add_request("fault", [KILLED, rank, 0], token_params())
    for output in finish(engine).values():
        assert f"DeviceLostError: rank {rank} (actor on " in str(output.error)
        assert f"process {workers[rank]}) ended with ActorDiedError: " in str(output.error)
    assert isinstance(engine.errored, DeviceLostError)
    wait_until(lambda: nothing_is_left() and not any(map(runs, workers)))


@pytest.mark.parametrize(
    ("harm", "timeout_s", "found"), [("SIGKILL", 3600.0, "ended with ActorDiedError"), ("SIGSTOP", 1.0, "gave no sign of life")]
)
def test_a_rank_that_ends_or_hangs_while_nobody_asks_anything_is_found(
    cluster: Any, harm: str, timeout_s: float, found: str
) -> None:
    engine = make_engine(make_config(2, "ray", timeout_s=timeout_s), null_rank)
    workers = pids(engine)
    asked, _asks = multiprocessing.Pipe()
    os.kill(workers[1], signal.Signals[harm])
    with pytest.raises(DeviceLostError, match=f"rank 1 .actor on .*{found}"):
        cast("DistributedExecutor", engine.executor).wait_idle(asked)
    wait_until(lambda: nothing_is_left() and not any(map(runs, workers)), 2 * LIMIT_S)


def test_a_shutdown_leaves_nothing(cluster: Any) -> None:
    engine = make_engine(make_config(2, "ray"), null_rank)
    workers = pids(engine)
    assert len(actors("RankActor")) == 2 and [group["strategy"] for group in groups()] == ["PACK"]
    engine.shutdown()
    engine.shutdown()
    wait_until(lambda: nothing_is_left() and not any(map(runs, workers)))
    assert cluster.is_initialized(), "who joined a cluster leaves it"


def test_a_rank_that_dies_while_it_starts_is_told_of(cluster: Any) -> None:
    with pytest.raises(DeviceLostError, match=r"rank 1 .actor on .*, process \d+. ended with ActorDiedError"):
        make_engine(make_config(2, "ray"), dying_start)
    wait_until(nothing_is_left)


def test_workers_end_with_their_driver_even_in_a_step_that_never_ends(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
engine = make_engine(make_config(2, "ray"))
print(*pids(engine), flush=True)
engine.add_request("r", [KILLED, 7, 0], token_params())
engine.step()
"""
    monkeypatch.setenv("RAY_ADDRESS", cluster.get_runtime_context().gcs_address)
    with subprocess.Popen([sys.executable, "-c", HEAD + code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.split()[:1] and line.split()[0].isdigit())
        workers = [int(word) for word in line.split()]
        assert len(workers) == 2 and all(map(runs, workers))
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: nothing_is_left() and not any(map(runs, workers)))


def test_an_engine_that_finds_no_cluster_starts_one_and_ends_it(cluster: Any) -> None:
    """In a process of its own: this one has joined a cluster."""
    code = """
import ray
engine = make_engine(make_config(1, "ray"), null_rank)
print("joined:", ray.is_initialized())
engine.shutdown()
print("joined:", ray.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", HEAD + code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("joined:")] == ["joined: True", "joined: False"]


def test_what_cannot_be_placed_is_refused_before_weights_are_read(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.distributed.launchers.ray.PLACEMENT_S", 0.5)
    config = EngineConfig(executor=ExecutorConfig("distributed"), parallel=ParallelConfig(tp=2, pp=2, backend="ray"), device="cpu")
    words = (
        r"cannot place 4 ranks .parallel.tp=2, pp=2. that take 1 CPU each: the cluster has 2, of which 2 are free; ask for fewer"
    )
    with pytest.raises(ValueError, match=words):
        build_engine(config)
    config = make_config(1, "ray")
    config.device = "cuda"
    with pytest.raises(ValueError, match=r"1 ranks .* take 1 GPU each: the cluster has 0, of which 0 are free"):
        make_engine(config, null_rank)
    assert nothing_is_left()
