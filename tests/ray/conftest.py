"""A cluster of Ray for each module: one machine with two processors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The module ``ray``, which has joined it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kernelswap[ray]'")
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    yield ray
    ray.shutdown()
