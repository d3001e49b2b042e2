"""Tests of what only a GPU can show: ``pytest -m gpu``. Bodies that make sense on a CPU run there too."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def free_memory() -> Iterator[None]:
    """Large tensors of one test are gone before the next."""
    yield
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A device with too little memory for a test skips it."""
    try:
        return (yield)
    except torch.cuda.OutOfMemoryError as error:
        pytest.skip(str(error).splitlines()[0])
