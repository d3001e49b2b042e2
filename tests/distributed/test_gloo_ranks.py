"""Ranks of a real model that are killed, stopped or left alone in the middle of a step, where the others wait for them in gloo."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from framework.distributed.rendezvous import LOCAL, Rendezvous
from framework.engine.engine import Engine

from ..framework.engines import finish, token_params, tokens_of
from .gloo_ranks import gloo_engine, quick_starts
from .ranks import KILLED, STOPPED
from .test_faults import LIMIT_S, assert_ends, pids, runs, started, wait_until

__all__ = ["quick_starts"]
SIZES = [(2, 1), (1, 2)]


def tokens(engine: Engine) -> list[list[int]]:
    engine.add_request("r", [1, 2, 3], token_params(max_tokens=6, ignore_eos=True))
    return tokens_of(finish(engine)["r"])


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.parametrize("num_rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tp", "pp"), SIZES)
def test_a_killed_rank_is_named_and_the_next_engine_starts(tp: int, pp: int, num_rounds: int) -> None:
    for turn in range(num_rounds):
        rank = turn % 2
        for error in assert_ends(gloo_engine(tp, pp), KILLED, rank, LIMIT_S):
            assert f"DeviceLostError: rank {rank} (process " in error and "killed by SIGKILL" in error


@pytest.mark.slow
@pytest.mark.usefixtures("quick_starts")
@pytest.mark.parametrize("rank", range(4))
def test_each_of_four_ranks_may_be_killed(rank: int) -> None:
    for error in assert_ends(gloo_engine(2, 2), KILLED, rank, LIMIT_S):
        assert f"DeviceLostError: rank {rank} (process " in error and "killed by SIGKILL" in error


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.parametrize(("tp", "pp"), SIZES)
def test_a_stopped_rank_is_found_by_the_timeout(tp: int, pp: int) -> None:
    for error in assert_ends(gloo_engine(tp, pp, timeout_s=3.0), STOPPED, 1, 3.0 + LIMIT_S):
        assert "was not done within 3 s (parallel.step_timeout_s): rank 1 (process " in error and "no sign of life" in error


@pytest.mark.usefixtures("quick_starts")
def test_ranks_leave_their_groups_and_free_their_port(tmp_path: Path) -> None:
    """Processors are shared among them."""
    engine = gloo_engine(2, 1, folder=str(tmp_path))
    workers, rendezvous = pids(engine), engine.executor._rendezvous  # type: ignore[attr-defined]
    tokens(engine)
    engine.shutdown()
    assert not any(map(runs, workers))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank 0", "rank 1"]
    for path in tmp_path.iterdir():
        assert path.read_text() == repr((False, 1, os.environ.get("OMP_NUM_THREADS", "1")))
    Rendezvous(int(rendezvous.address.rpartition(":")[2]), LOCAL).close()


def test_ranks_end_with_their_driver_in_the_middle_of_a_step() -> None:
    code = f"""
if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="nowhere.invalid", MASTER_PORT="many", RANK="7", WORLD_SIZE="3")  # of somebody else
    from tests.distributed.gloo_ranks import gloo_engine
    engine = gloo_engine(2, 1)
    print(*pids(engine), flush=True)
    engine.add_request("r", [{STOPPED}, 1, 0], token_params())
    engine.step()
"""
    process, workers = started(code)
    with process:
        assert len(workers) == 2
        wait_until(lambda: stopped(workers[1]), 60)
        assert runs(workers[0])
        process.kill()
    wait_until(lambda: not runs(workers[0]))
    os.kill(workers[1], signal.SIGCONT)
    wait_until(lambda: not runs(workers[1]))


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
