"""Sweeps: repeats in turn, until an interval is narrow, and after an interruption. Jobs take no time (sweep_app.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.repeating import check_sweep_keys, halfwidths
from experiments.sweep_folder import SweepState, check_resumable, find_interrupted, locked, progress
from framework.study.comparison import compare
from framework.study.compose import CONFIG_FILE, ServeConfig, save_config
from framework.study.results import RUN_FILE, collect
from framework.study.workload import WorkloadConfig
from tests.experiments import sweep_app

AB = "scheduler.max_num_batched_tokens=64,512"


def sweep(folder: Path, *arguments: str, interrupt_at: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = (
        os.environ | {"PYTHONPATH": str(sweep_app.ROOT)} | ({} if interrupt_at is None else {"INTERRUPT_AT": str(interrupt_at)})
    )
    command = [sys.executable, sweep_app.__file__, "-m", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def sweeps(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "serve").iterdir())


def rows(folder: Path) -> dict[int, dict]:
    found = {int(path.parent.name): json.loads(path.read_text()) for path in folder.glob("*/run.json")}
    return dict(sorted(found.items()))


def test_repeats_run_in_turn_and_pairs_meet_the_same_requests(tmp_path: Path) -> None:
    done = sweep(tmp_path, AB, "repeats=3", "seed=7")
    (folder,) = sweeps(tmp_path)
    found = rows(folder).values()
    assert [row["scheduler.max_num_batched_tokens"] for row in found] == [64, 512] * 3, done.stderr
    assert [(row["repeat"], row["seed"], row["workload.seed"]) for row in found] == [(i // 2, 7, 7) for i in range(6)]
    assert all(row["repeats"] == 3 and row["num_warmup_requests"] == 2 and "resume" not in row for row in found)
    assert "5 of 6 runs in" in done.stdout and " left; " in done.stdout and f"6 of 6 runs in {folder}, 0 failed; " in done.stdout
    (compared,) = compare(collect(folder), ["metric.tpot_p50_s"], "scheduler.max_num_batched_tokens", "512").to_dict("records")
    assert compared["pairs"] == 3


def test_a_repeat_shifts_the_seeds() -> None:
    config = ServeConfig(seed=7, repeat=3, workload=WorkloadConfig(seed=20))
    assert (config.shifted().engine().seed, config.shifted().workload.seed) == (10, 23)
    assert (config.seed, config.workload.seed) == (7, 20)


def test_repeats_until_the_interval_is_narrow(tmp_path: Path) -> None:
    """Noise of 1 % in both: the ratio is known to 0.8 % after about (2.262 * 1.41 / 0.8)^2 = 16 repeats."""
    done = sweep(tmp_path, AB, "repeats=auto", "primary_metric=tpot_p50_s", "precision=0.008")
    (folder,) = sweeps(tmp_path)
    num_repeats = len(rows(folder)) // 2
    assert 10 < num_repeats < 30, done.stderr
    shown = [line for line in done.stdout.splitlines() if "wanted 0.80%" in line]
    assert shown[0].startswith("10 repeats: tpot_p50_s within") and shown[-1].startswith(f"{num_repeats} repeats")
    assert "20 of at most 120 runs in" in done.stdout
    (compared,) = compare(collect(folder), ["metric.tpot_p50_s"], "scheduler.max_num_batched_tokens", "512").to_dict("records")
    assert compared["verdict"].endswith("% slower") and compared["low"] < 1.03 < compared["high"]
    assert compared["high"] - compared["low"] < 0.02  # a bootstrap interval may be a little wider than what it stopped at


def test_every_setting_is_judged_beside_its_own_base() -> None:
    """By hand: of two keys with two values each, the third setting is the first with the other value of the first key."""
    settings = [[f"a={a}", f"b={b}"] for a in (1, 2) for b in (1, 2)]
    bases = np.exp(np.random.default_rng(0).normal(size=(12, 2)))
    noise = np.exp(0.1 * np.random.default_rng(1).normal(size=12))
    found = halfwidths(np.hstack([bases, bases * np.stack([noise, np.full(12, 1.2)], 1)]), settings)
    t_9 = 2.262  # the degrees of freedom of the first look, however many came after it
    assert found == pytest.approx([t_9 * np.log(noise).std(ddof=1) / 12**0.5, 0.0], abs=1e-12)


def test_repeats_end_at_the_most_that_was_asked_for_and_failures_are_not_waited_for(tmp_path: Path) -> None:
    auto = ("repeats=auto", "primary_metric=tpot_p50_s", "precision=1e-6", "max_repeats=3")
    done = sweep(tmp_path, *auto)
    assert [row["repeat"] for row in rows(sweeps(tmp_path)[0]).values()] == [0, 1, 2], done.stderr
    done = sweep(tmp_path, "workload.num_requests=12,13", *auto)
    assert len(rows(sweeps(tmp_path)[1])) == 6 and "no setting that worked is left to compare" in done.stdout
    assert done.returncode == 0


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    arguments = ("workload.num_requests=12,13", "repeats=2")
    done = sweep(tmp_path, *arguments, interrupt_at=3)
    (folder,) = sweeps(tmp_path)
    name = str(folder.relative_to(tmp_path))
    assert done.returncode == 130 and f"resume={name}" in done.stderr and "3 of 4 runs" in done.stderr
    files = {job: (folder / str(job) / "run.json").stat().st_mtime_ns for job in rows(folder)}
    done = sweep(tmp_path, *arguments)
    assert sweeps(tmp_path) == [folder] and f"going on with the sweep in {name}" in done.stdout, done.stderr
    assert [(row["status"], row["repeat"]) for row in rows(folder).values()] == [("ok", 0), ("failed", 0), ("ok", 1), ("failed", 1)]
    assert {job for job, time in files.items() if (folder / str(job) / "run.json").stat().st_mtime_ns != time} == {1}
    assert "2 of 4 jobs finished before, not run again" in done.stdout
    sweep(tmp_path, *arguments)
    assert len(sweeps(tmp_path)) == 2, "a sweep that ended is measured anew"
    sweep(tmp_path, *arguments, "repeats=3", f"resume={name}")
    assert len(rows(folder)) == 6 and len(sweeps(tmp_path)) == 2, "and can be given more repeats"


def test_a_folder_of_other_configs_is_refused(tmp_path: Path) -> None:
    """Two repeats of two settings."""
    a, b, c = (ServeConfig(num_warmup_requests=number) for number in (1, 2, 3))
    for job, config in enumerate((a, b, replace(a, repeat=1), replace(b, repeat=1))):
        (tmp_path / str(job)).mkdir()
        save_config(config, tmp_path / str(job) / CONFIG_FILE)
    check_resumable(tmp_path, [replace(a, repeats=2, resume="x"), b], 4)
    check_resumable(tmp_path, [a, b], 8)
    for configs, num_jobs, message in (
        ([a, c], 4, r"job 1 in .* ran with num_warmup_requests=2, this sweep asks for 3: give the command"),
        ([a, replace(c, seed=1)], 4, "and in 1 more keys"),
        ([a, b], 2, "holds a job 2, and this sweep has only 2"),
        ([a], 4, "job 1 in .* ran with "),
    ):
        with pytest.raises(ValueError, match=message):
            check_resumable(tmp_path, configs, num_jobs)
    (tmp_path / "1" / CONFIG_FILE).write_text("{")
    check_resumable(tmp_path, [a, b], 4)
    (tmp_path / "1" / RUN_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"1/config\.json cannot be read"):
        check_resumable(tmp_path, [a, b], 4)


def test_a_folder_that_is_no_sweep_or_is_running_is_refused(tmp_path: Path) -> None:
    done = sweep(tmp_path, "resume=nowhere")
    assert done.returncode == 1 and "resume=nowhere is not the folder of a sweep" in done.stderr
    SweepState("", "", 1, False, 0.0).write(tmp_path)
    with locked(tmp_path):
        done = sweep(tmp_path, f"resume={tmp_path}")
    assert done.returncode == 1 and "is running" in done.stderr and not rows(tmp_path)


def test_only_the_same_sweep_of_the_same_code_goes_on(tmp_path: Path) -> None:
    for number, (asked, code, finished) in enumerate([("a", "1", False), ("a", "1", True), ("a", "2", False), ("b", "1", False)]):
        (tmp_path / str(number)).mkdir()
        SweepState(asked, code, 1, False, 0.0, finished).write(tmp_path / str(number))
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "sweep.json").write_text("{")
    assert find_interrupted(tmp_path, "a", "1") == tmp_path / "0"
    assert find_interrupted(tmp_path, "b", "2") is None
    with locked(tmp_path / "0"):
        assert find_interrupted(tmp_path, "a", "1") is None


def test_progress_without_a_state_counts_what_is_there(tmp_path: Path) -> None:
    assert progress(tmp_path).startswith(f"0 runs in {tmp_path}, 0 failed; ")


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (ServeConfig(repeats=0), [], "repeats=0 cannot work: it must be a positive number, or auto"),
        (ServeConfig(repeats=-1), [], "repeats=-1 cannot work"),
        (ServeConfig(repeats="often"), [], "repeats='often' cannot work"),
        (ServeConfig(repeats="auto"), [], "primary_metric=None cannot work: it must be the metric that repeats=auto judges by"),
        (ServeConfig(repeats="auto", primary_metric="x", precision=0.0), [], "precision=0.0 cannot work"),
        (ServeConfig(repeats="auto", primary_metric="x", max_repeats=1), [], "max_repeats=1 cannot work"),
        (ServeConfig(repeats=2), ["repeat=1"], "repeat was given beside repeats=2"),
        (ServeConfig(repeats=2), ["seed=1", "seed=2"], "seed is swept beside repeats=2"),
    ],
)
def test_keys_of_a_sweep_that_cannot_work(config: ServeConfig, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sweep_keys([config], [[override] for override in overrides])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repeats=1.5"], "repeats"),
        (["repeats=2,3"], "repeats is a key of the whole sweep"),
        (["repeats=auto", "primary_metric=tpot"], "primary_metric='tpot' was not observed; there are goodput_per_s, tpot_p50_s"),
        (["scheduler.polcy=fcfs,priority"], "Key 'polcy' not in 'SchedulerConfig'"),
        (["+scheduler.polcy=fcfs,priority"], "there is no key scheduler.polcy"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert len(list(tmp_path.rglob("run.json"))) <= ("was not observed" in message), "before any job runs"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = sweep(tmp_path, AB, "hydra.sweep.dir=taken/here")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "taken" in done.stderr


@pytest.mark.parametrize("repeats", [["repeats=2"], ["repeats=auto", "primary_metric=tpot_p50_s"]])
def test_a_sweep_of_which_every_run_failed_ends_with_an_error(repeats: list[str], tmp_path: Path) -> None:
    done = sweep(tmp_path, "workload.num_requests=13", *repeats)
    (folder,) = sweeps(tmp_path)
    number, name = 1 if "auto" in repeats[0] else 2, folder.relative_to(tmp_path)
    assert done.returncode == 1 and f"all {number} runs in {name} failed; the first: ValueError: thirteen" in done.stderr
    assert len(rows(folder)) == number


def test_repeats_without_a_sweep_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, sweep_app.__file__, "repeats=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "repeats=2 needs a sweep by hydra/sweeper=study: add -m" in done.stderr


@pytest.mark.parametrize(
    ("launcher", "package"),
    [("joblib", "hydra_joblib_launcher"), ("submitit_local", "hydra_submitit_launcher"), ("ray", "hydra_ray_launcher")],
)
def test_jobs_of_another_launcher(launcher: str, package: str, tmp_path: Path) -> None:
    """Of the optional extra [launchers]; jobs run in processes that it starts."""
    pytest.importorskip(f"hydra_plugins.{package}")
    arguments = (f"hydra/launcher={launcher}", AB, "repeats=2")
    done = sweep(tmp_path, *arguments)
    (folder,) = sweeps(tmp_path)
    found = [(row["status"], row["scheduler.max_num_batched_tokens"], row["repeat"]) for row in rows(folder).values()]
    assert found == [("ok", 64, 0), ("ok", 512, 0), ("ok", 64, 1), ("ok", 512, 1)], done.stderr


def test_a_search_for_the_most_goodput(tmp_path: Path) -> None:
    """Goodput of the made-up jobs grows with the tokens of a step; a trial that fails is one the search does without."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("hydra/sweeper=optuna", "search=goodput", "hydra.sweeper.n_trials=6")
    done = sweep(tmp_path, *search, "workload.num_requests=choice(12,13)")
    (folder,) = sweeps(tmp_path)
    found = rows(folder).values()
    best = max(row["metric.goodput_per_s"] for row in found if row["status"] == "ok")
    assert len(found) == 6 and f"best_value: {best}" in (folder / "optimization_results.yaml").read_text(), done.stderr
    assert {row["status"] for row in found} == {"ok", "failed"}
    done = sweep(tmp_path, *search, "repeats=3")
    assert done.returncode == 1 and "another sweeper cannot repeat" in done.stdout + done.stderr
