"""The folder of a sweep: what was asked for, how far it got, and whether it can go on.

Job N lies in the folder N. ``sweep.json`` is written by the sweeper; a folder without one is of another sweeper.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from framework.study.compose import CONFIG_FILE, SWEEP_KEYS, StudyConfig
from framework.study.results import RUN_FILE, flatten

SWEEP_FILE, LOCK_FILE = "sweep.json", "sweep.lock"


@dataclass
class SweepState:
    """asked     digest of the settings and of how they are repeated
    code      version of the code that began the sweep
    num_jobs  of all repeats
    at_most   whether it may end with fewer (``repeats=auto``)
    start_s   when the sweep was started or went on, in seconds since the epoch
    finished  whether all jobs ran, whatever came of them
    """

    asked: str
    code: str
    num_jobs: int
    at_most: bool
    start_s: float
    finished: bool = False

    def write(self, folder: Path) -> None:
        """In one move, so that a job never reads half of it."""
        draft = folder / f"{SWEEP_FILE}.part"
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        draft.replace(folder / SWEEP_FILE)

    @classmethod
    def read(cls, folder: Path) -> SweepState | None:
        """None where the folder holds none that this version can read."""
        try:
            values = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for one sweep at a time; a process that dies lets go of it. Raises ValueError if another holds it."""
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"the sweep in {folder} is running: wait for it, or start a new one with resume=never") from None
        yield


def find_interrupted(parent: Path, asked: str, code: str) -> Path | None:
    """The folder of the sweep that was begun last with the same configs and code, did not finish, and is not running."""
    for file in sorted(parent.glob(f"*/{SWEEP_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        state = SweepState.read(file.parent)
        if state and not state.finished and (state.asked, state.code) == (asked, code):
            try:
                with locked(file.parent):
                    return file.parent
            except ValueError:
                continue
    return None


def run_columns(config: StudyConfig | Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run: the flat config, as its file holds it, without the keys of the sweep."""
    values = config if isinstance(config, Mapping) else json.loads(json.dumps(asdict(config)))
    return {key: value for key, value in flatten(values).items() if key not in SWEEP_KEYS}


def check_resumable(folder: Path, configs: Sequence[StudyConfig], num_jobs: int) -> None:
    """Raises ValueError if a job in the folder is not of this sweep, whose settings are ``configs``, repeated one round after
    another: job N is setting N modulo their number."""
    for path in sorted(folder.glob(f"*/{CONFIG_FILE}"), key=lambda path: path.parent.name):
        name = path.parent.name
        if not name.isdigit():
            continue
        if int(name) >= num_jobs:
            raise ValueError(f"{folder} holds a job {name}, and this sweep has only {num_jobs}: start a new one with resume=never")
        repeat, setting = divmod(int(name), len(configs))
        expected = run_columns(configs[setting]) | ({"repeat": repeat} if num_jobs > len(configs) else {})
        found = read_config(path.parent)
        if found is None:
            if (path.parent / RUN_FILE).exists():
                raise ValueError(f"{path} cannot be read, so nobody knows what its run was of: remove the folder {name} to run it")
        elif differing := [key for key in {**expected, **found} if expected.get(key, "") != found.get(key, "")]:
            key = differing[0]
            more = f", and in {len(differing) - 1} more keys" if len(differing) > 1 else ""
            raise ValueError(
                f"job {name} in {folder} ran with {key}={found.get(key, 'absent')}, this sweep asks for "
                f"{expected.get(key, 'absent')}{more}: give the command that began it, or start a new one with resume=never"
            )


def read_config(job: Path) -> dict[str, Any] | None:
    """The run columns of a job's config; None where there is no config to read."""
    try:
        return run_columns(json.loads((job / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None


def read_row(job: Path) -> dict[str, Any] | None:
    """The row of a job; None where it left none (yet), or half of one."""
    try:
        row: dict[str, Any] = json.loads((job / RUN_FILE).read_text(encoding="utf-8"))
        return row if "status" in row else None
    except (OSError, ValueError):
        return None


def is_finished(job: Path, config: StudyConfig) -> bool:
    """Whether the job's folder holds the result of a run of this config that worked."""
    row = read_row(job)
    return row is not None and row["status"] == "ok" and read_config(job) == run_columns(config)


def progress(folder: Path) -> str:
    """How the jobs of a sweep fared so far, and how long the others will take at the pace of those since it was started."""
    rows = {path: row for path in folder.glob(f"*/{RUN_FILE}") if (row := read_row(path.parent))}
    num_failed = sum(row["status"] == "failed" for row in rows.values())
    state = SweepState.read(folder)
    total = left = ""
    if state:
        bound = "at most " if state.at_most else ""
        total = f" of {bound}{state.num_jobs}"
        num_now = sum(path.stat().st_mtime >= state.start_s for path in rows)
        if num_now and (missing := state.num_jobs - len(rows)) > 0:
            seconds = (time.time() - state.start_s) / num_now * missing
            left = f", {bound}{timedelta(seconds=round(seconds))} left"
    return f"{len(rows)}{total} runs in {folder}, {num_failed} failed{left}; kernelswap collect {folder}"
