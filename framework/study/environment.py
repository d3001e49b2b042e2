"""What a result row says about where it was measured. No host names, no paths."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from ..config import EngineConfig
from ..executor.kinds import EXECUTORS

DISTRIBUTIONS = ("kernelswap", "torch", "triton", "transformers", "diffusers", "numpy")

START_TIME = "env.start_time"
"""The column that says when a run started: a failed run has it too."""


def utc_now() -> str:
    """The time in UTC as ISO 8601, to the second: 2030-01-31T12:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(config: EngineConfig | None) -> dict[str, str | int]:
    """``env.*`` columns: versions, processor, commit, and the device that an engine of ``config`` runs on here; None: it runs
    elsewhere."""
    found: dict[str, str | int] = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["cpu"] = _cpu_name()
    found["num_cpus"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config is not None:
        found["device"], _ = EXECUTORS[config.executor.kind].load().runs_on(config)
    if commit := _git("rev-parse", "HEAD"):
        found["commit"] = commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return {f"env.{key}": value for key, value in found.items()}


def code_version() -> str:
    """What stays the same as long as the code does: the version, the commit, and a digest of what differs from it (untracked files
    aside)."""
    difference = _git("diff", "HEAD") or ""
    digest = hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else "clean"
    return f"{importlib.metadata.version('kernelswap')} {_git('rev-parse', 'HEAD') or 'no checkout'} {digest}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package; None where it is not in a checkout of its own, or git is missing."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
