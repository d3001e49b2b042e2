"""What studies of many runs have in common: a run is a job in a process of its own, so that nothing of one (memory, caches,
compiled code, threads) reaches the next. Its folder gets config.json before it starts, and run.json however it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.sweep_folder import progress, read_row
from framework.engine_process import SHORT_WAITS
from framework.study.compose import CONFIG_FILE, SWEEP_KEYS, SWEEPER_TARGET, StudyConfig, save_config
from framework.study.environment import START_TIME, utc_now
from framework.study.results import RUN_FILE, config_columns, write_run

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent dies."""

Found = TypeVar("Found")


def run_hydra_job(config: StudyConfig, script: Path) -> float | None:
    """The body of a Hydra app: runs the job, and says how it went. A failure ends a single run with an error, a sweep of ours goes
    on. Another sweeper (a search) gets ``primary_metric``, and an exception for a run that failed.

    Raises ValueError for keys of a sweep that nobody would read."""
    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    by_us = in_sweep and job.sweeper._target_ == SWEEPER_TARGET
    if config.repeats != 1 and not by_us:
        found = "another sweeper cannot repeat" if in_sweep else "add -m, or repeats=1 for one run"
        raise ValueError(f"repeats={config.repeats} needs a sweep by hydra/sweeper=study: {found}")
    folder = Path(job.runtime.output_dir)
    worked = run_job(config, script, folder)
    if in_sweep:
        print(progress(folder.parent), flush=True)
    elif not worked:
        sys.exit(1)
    return None if by_us or config.primary_metric is None else objective(folder, config.primary_metric)


def objective(folder: Path, metric: str) -> float:
    """The metric of the run in ``folder``. Raises ValueError if the run failed or has no such metric."""
    row = read_row(folder)
    assert row is not None, "a job leaves a row however it ends"
    if row["status"] != "ok":
        raise ValueError(f"the run in {folder} failed: {row['error']}")
    if f"metric.{metric}" not in row:
        there = ", ".join(sorted(key.removeprefix("metric.") for key in row if key.startswith("metric.")))
        raise ValueError(f"primary_metric={metric!r} was not observed; there are {there}")
    return float(row[f"metric.{metric}"])


def run_job(config: StudyConfig, script: Path, folder: Path) -> bool:
    """Runs ``script FOLDER`` on ``config``; True if it worked. A process that dies without a word (killed, out of memory) leaves a
    row too."""
    row = first_columns(config)
    (folder / RUN_FILE).unlink(missing_ok=True)  # of an attempt before this one
    save_config(config, folder / CONFIG_FILE)
    done = subprocess.run([sys.executable, str(script), str(folder), str(os.getpid())], env=SHORT_WAITS | os.environ)
    if not (folder / RUN_FILE).exists():
        error = f"the process ended with code {done.returncode} before it could write a result"
        write_run(folder, {**row, "status": "failed", "error": error})
    return done.returncode == 0


def job_main(run: Callable[[Path], bool]) -> NoReturn:
    """The body of a job's script: ``FOLDER [PARENT]``. With the process that started it, the job ends when that does, however it
    ended: a sweep that goes on must not meet a job of before."""
    folder, *parents = sys.argv[1:]
    for parent in parents:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it ended before it could be watched
            sys.exit(1)
    try:
        sys.exit(0 if run(Path(folder)) else 1)
    except KeyboardInterrupt:  # meant for the sweep, which says what it means
        sys.exit(130)


def first_columns(config: StudyConfig) -> dict[str, Any]:
    """The columns that a row has from the start. Of the keys of its sweep only how often it was repeated: with auto, intervals are
    computed in another way."""
    columns = {key: value for key, value in config_columns(config).items() if key not in SWEEP_KEYS}
    return {**columns, "repeats": config.repeats, START_TIME: utc_now()}


def attempt(folder: Path, row: dict[str, Any], measure: Callable[[], Found]) -> Found | None:
    """What ``measure`` finds; None if it failed: then the folder holds ``row`` with the error."""
    try:
        return measure()
    except Exception as error:
        print(f"error: {error}" if isinstance(error, ValueError) else traceback.format_exc(), file=sys.stderr)
        write_run(folder, {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"})
        return None
