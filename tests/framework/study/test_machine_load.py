"""The machine's other load, beside a load that the test makes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.study import machine_load as module
from framework.study.machine_load import machine_load

SPIN = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc/stat")
def test_what_others_do_is_counted_and_what_the_run_does_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By hand: 3 s of CPUs at 100 ticks a second, of which a second was the run's own; half a second stolen; in 4 s."""
    stat, clock = tmp_path / "stat", iter((100.0, 104.0))
    monkeypatch.setattr(module, "_STAT", stat)
    monkeypatch.setattr(module.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    own = iter([module.os.times_result((1.0, 1.0, 0.5, 0.0, 0.0)), module.os.times_result((1.5, 1.25, 0.75, 0.0, 0.0))])
    monkeypatch.setattr(module.os, "times", lambda: next(own))
    stat.write_text("cpu  1000 10 200 9000 70 5 5 20 0 0\ncpu0 1 2 3\n")
    with machine_load() as load:
        stat.write_text("cpu  1200 20 270 9999 99 15 15 70 0 0\ncpu0 1 2 3\n")
    assert (load["env.cpus_busy_elsewhere"], load["env.cpus_stolen"]) == (0.5, 0.125)
    assert set(load) <= {f"env.{name}" for name in ("load_1min_start", "load_1min_end", "cpus_busy_elsewhere", "cpus_stolen")}


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc/stat")
def test_a_neighbour_is_seen() -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        with machine_load() as load:
            time.sleep(1.0)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert load["env.cpus_busy_elsewhere"] > 0.3


def test_a_system_that_does_not_say_leaves_no_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_STAT", tmp_path / "none")
    monkeypatch.delattr(module.os, "getloadavg", raising=False)
    with machine_load() as load:
        pass
    assert load == {}
