"""Where Ray is not installed, who asks for it is told how it comes."""

from __future__ import annotations

import importlib
import sys

import pytest

from framework import LLM

EXTRA = r"the package ray is not installed: pip install 'kernelswap\[ray\]'"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.distributed.kinds.find_spec", lambda name: None)


def test_ranks_name_the_extra() -> None:
    with pytest.raises(ValueError, match=EXTRA):
        LLM("tiny", tensor_parallel_size=2, distributed_executor_backend="ray")


def test_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[:2] == ["framework", "ray"]]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=EXTRA):
        importlib.import_module("framework.ray")
