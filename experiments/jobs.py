"""What studies of many runs have in common: a run is a job in a process of its own, so that nothing of one (memory, caches,
compiled code, threads) reaches the next. Its folder gets config.json before it starts, and run.json however it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from framework.study.compose import CONFIG_FILE, StudyConfig, save_config
from framework.study.environment import START_TIME, utc_now
from framework.study.results import RUN_FILE, config_columns, write_run

SHORT_WAITS = {"GOMP_SPINCOUNT": "1000"}
"""Threads of a CPU kernel that wait for one another go to sleep after a short spin. OpenMP's default is a long one, with which one
busy neighbour on the machine makes steps twice as long and more."""

Found = TypeVar("Found")


def run_hydra_job(config: StudyConfig, script: Path) -> None:
    """The body of a Hydra app: runs the job, and says how it went. A failure ends a single run with an error, a sweep goes on."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    worked = run_job(config, script, folder)
    if job.mode == RunMode.MULTIRUN:
        print(sweep_summary(folder.parent), flush=True)
    elif not worked:
        sys.exit(1)


def run_job(config: StudyConfig, script: Path, folder: Path) -> bool:
    """Runs ``script FOLDER`` on ``config``; True if it worked. A process that dies without a word (killed, out of memory) leaves a
    row too."""
    row = first_columns(config)
    save_config(config, folder / CONFIG_FILE)
    done = subprocess.run([sys.executable, str(script), str(folder)], env=SHORT_WAITS | os.environ)
    if not (folder / RUN_FILE).exists():
        error = f"the process ended with code {done.returncode} before it could write a result"
        write_run(folder, {**row, "status": "failed", "error": error})
    return done.returncode == 0


def sweep_summary(folder: Path) -> str:
    """How the jobs of a sweep fared so far."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/{RUN_FILE}"))]
    num_failed = sum(row["status"] == "failed" for row in rows)
    return f"{len(rows)} runs in {folder}, {num_failed} failed; kernelswap collect {folder}"


def first_columns(config: StudyConfig) -> dict[str, Any]:
    """The columns that a row has from the start."""
    return {**config_columns(config), START_TIME: utc_now()}


def attempt(folder: Path, row: dict[str, Any], measure: Callable[[], Found]) -> Found | None:
    """What ``measure`` finds; None if it failed: then the folder holds ``row`` with the error."""
    try:
        return measure()
    except Exception as error:
        print(f"error: {error}" if isinstance(error, ValueError) else traceback.format_exc(), file=sys.stderr)
        write_run(folder, {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"})
        return None
