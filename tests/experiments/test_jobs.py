"""Jobs as processes: how long they live."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.sweep_app import ROOT

JOB = """
import sys, time
sys.path.insert(0, {root!r})
from experiments.jobs import job_main
def run(folder):
    print("started", flush=True)
    time.sleep(60)
    return True
job_main(run)
"""
PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from experiments.jobs import run_job
from framework.study.compose import ServeConfig
run_job(ServeConfig(), Path({job!r}), Path({job!r}).parent)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(JOB.format(root=str(ROOT)))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="a job is told of its parent's end on Linux only")
@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_job_ends_with_the_process_that_started_it(how: str, job: Path) -> None:
    """Both write to one pipe, which is at its end when neither lives."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(root=str(ROOT), job=str(job))], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"started\n"
    getattr(parent, how)()
    assert parent.communicate(timeout=20) == (b"", None)


def test_a_job_whose_parent_ended_before_it_began_does_nothing(job: Path) -> None:
    done = subprocess.run([sys.executable, str(job), str(job.parent), "0"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")
