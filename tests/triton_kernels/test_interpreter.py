"""Runs the tests under interpret/ in a child session with Triton's interpreter on; their failures are shown here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpret"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("test_*.py")), ids=lambda p: p.stem)
def test_in_the_interpreter(file: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
