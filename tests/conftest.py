"""Test session: Triton's interpreter is chosen per process, so the tests that need it run in a child session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

INTERPRET = Path(__file__).parent / "triton_kernels" / "interpret"


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
