"""The tests under interpret/, which run in child sessions with Triton's interpreter on; their failures are shown here."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..interpreter_sessions import InterpreterSessions

FOLDER = Path(__file__).parent / "interpret"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("test_*.py")), ids=lambda p: p.stem)
def test_in_the_interpreter(file: Path, interpreter_sessions: InterpreterSessions) -> None:
    pytest.importorskip("triton")
    code, output = interpreter_sessions.result(file)
    assert code == 0, output[-8000:]
