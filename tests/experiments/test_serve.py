"""The serving experiment as users start it: a sweep with a failure, what is printed and what is left behind."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from experiments import jobs
from experiments import serve as experiment
from framework.study.compose import ServeConfig

SMALL = ("workload.num_requests=4", "workload.output_tokens=4", "workload.rate=inf", "device=cpu")


def serve(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, experiment.__file__, *arguments, *SMALL]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def rows(folder: Path) -> dict[Path, dict]:
    return {path: json.loads(path.read_text()) for path in sorted(folder.rglob("run.json"))}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[Path, dict]]:
    """A sweep over an impl that does not exist and one that does."""
    folder = tmp_path_factory.mktemp("sweep")
    return serve(folder, "-m", "kernels.sample=nonsense,torch"), rows(folder / "outputs" / "serve")


def test_a_run_leaves_its_row_its_requests_and_a_plot(sweep: tuple) -> None:
    done, found = sweep
    path, row = list(found.items())[1]
    assert row["status"] == "ok" and row["error"] is None, done.stderr
    assert (row["choice.sample"], row["plan.sample"], row["workload.rate"]) == ("torch", "torch", "inf")
    assert row["plan.sample.calls"] >= row["metric.num_steps"] > 0
    assert row["metric.num_completed"] == 4
    assert 0 < row["metric.ttft_p50_s"] <= row["metric.e2e_p99_s"]
    assert row["env.device"] == "cpu"
    requests = list(csv.DictReader((path.parent / "requests.csv").open()))
    assert sum(int(r["num_output_tokens"]) for r in requests) == row["metric.num_output_tokens"]
    assert (path.parent / "latency.png").stat().st_size > 10_000
    for shown in ("TTFT (ms)", "TPOT (ms)", "paged_attention_decode", "4 completed"):
        assert shown in done.stdout


def test_a_failed_job_is_a_row_and_the_sweep_goes_on(sweep: tuple) -> None:
    done, found = sweep
    failed, worked = found.values()
    assert done.returncode == 0
    assert (failed["status"], worked["status"]) == ("failed", "ok")
    assert failed["choice.sample"] == "nonsense" and "plan.sample" not in failed
    for part in ("NoKernelError", "no kernel for sample=nonsense", "There is no impl named 'nonsense'", "reference: available"):
        assert part in failed["error"]
    assert "no kernel for sample=nonsense" in done.stderr
    assert "2 of 2 runs in" in done.stdout and "1 failed" in done.stdout


def test_a_failed_run_exits_with_an_error(tmp_path: Path) -> None:
    done = serve(tmp_path, "workload.prompt_tokens=100000", "workload=random")
    assert done.returncode != 0
    (row,) = rows(tmp_path).values()
    assert row["status"] == "failed" and "refused every request" in row["error"]
    assert "refused every request" in done.stderr


def test_a_typo_starts_nothing(tmp_path: Path) -> None:
    done = serve(tmp_path, "cache.blok_size=16")
    assert done.returncode != 0 and "blok_size" in done.stderr
    assert not rows(tmp_path)


def test_an_op_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    done = serve(tmp_path, "kernels.smaple=torch", "kernels.default=torch")
    (row,) = rows(tmp_path).values()
    assert done.returncode != 0 and "kernels.smaple: there is no such op; the ops are all_gather, " in row["error"]
    assert (row["choice.smaple"], row["choice.default"]) == ("torch", "torch")


def test_a_job_that_is_killed_leaves_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL)
    monkeypatch.setattr(jobs.subprocess, "run", lambda *args, **kwargs: killed)
    assert not jobs.run_job(ServeConfig(), tmp_path / "job.py", tmp_path)
    (row,) = rows(tmp_path).values()
    assert row["status"] == "failed" and "code -9" in row["error"]
    assert datetime.now(UTC) - datetime.fromisoformat(row["env.start_time"]) < timedelta(minutes=1)


def test_every_row_says_when_its_run_started(sweep: tuple) -> None:
    failed, worked = (datetime.fromisoformat(row["env.start_time"]) for row in sweep[1].values())
    assert failed.utcoffset() == timedelta(0) and failed < worked < datetime.now(UTC)


def test_a_workload_that_cannot_work_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    done = serve(tmp_path, "workload=sharegpt", "model.name=there/is-none")
    assert done.returncode != 0 and "workload.path=None" in done.stderr


def test_several_engines_leave_a_row_like_one(tmp_path: Path) -> None:
    """Each in a process of its own: what they cannot show of their steps is no column."""
    done = serve(tmp_path, "executor=no_device", "parallel=dp2")
    (row,) = rows(tmp_path).values()
    assert (row["status"], row["parallel.dp"]) == ("ok", 2), done.stderr
    assert row["metric.num_completed"] == 4 and 0 < row["metric.ttft_p50_s"] <= row["metric.e2e_p99_s"]
    assert row["metric.replica_requests_min"] == row["metric.replica_requests_max"] == 2
    assert "metric.num_steps" not in row and row["metric.num_output_tokens"] > 0
    assert row["plan.system.prefix_caching"] == "on" and int(row["plan.system.in_flight_steps"]) > 0
