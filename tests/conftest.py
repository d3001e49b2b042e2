"""Test session: Triton's interpreter is chosen per process, so the tests that need it run in child sessions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .interpreter_sessions import InterpreterSessions

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before OpenMP is loaded: several processes of the tests compute at a time
INTERPRET = Path(__file__).parent / "triton_kernels" / "interpret"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-installs", action="store_true", help="tests that install gigabytes, over the network, run too")
    parser.addoption("--mixes", default="0:12", metavar="FIRST:END", help="seeds of mixes: of speculation, of encoder-decoders")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mix_seed" in metafunc.fixturenames:
        metafunc.parametrize("mix_seed", range(*map(int, metafunc.config.getoption("--mixes").split(":"))))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Interpreter tests are collected only where the interpreter is on; test_interpreter.py starts such a session."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return True if collection_path == INTERPRET else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """They take one core for minutes, so they begin at once, beside the other tests."""
    files = [item.callspec.params["file"] for item in session.items if "interpreter_sessions" in getattr(item, "fixturenames", ())]  # type: ignore[attr-defined]
    if files and not session.config.option.collectonly:
        session.config.stash[SESSIONS] = InterpreterSessions(files)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (sessions := config.stash.get(SESSIONS, None)) is not None:
        sessions.close()


SESSIONS = pytest.StashKey[InterpreterSessions]()


@pytest.fixture
def interpreter_sessions(request: pytest.FixtureRequest) -> InterpreterSessions:
    return request.config.stash[SESSIONS]
