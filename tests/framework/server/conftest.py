"""One engine around the tiny model, and HTTP servers around it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from framework import AsyncEngine
from framework.llm import LLM
from framework.server.config import ServerConfig

from .servers import HTTPServer, engine_config, serving


@pytest.fixture(scope="session")
def engine() -> Iterator[AsyncEngine]:
    engine = AsyncEngine(engine_config())
    yield engine
    engine.shutdown()


@pytest.fixture(scope="session")
def server(engine: AsyncEngine) -> Iterator[HTTPServer]:
    with serving(engine, ServerConfig(enable_prompt_tokens_details=True)) as server:
        yield server


@pytest.fixture(scope="session")
def offline() -> LLM:
    """What the server's answers are compared with."""
    return LLM(engine_config())


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that uses the shared engine, it is idle, and all its blocks are free."""
    yield
    if "engine" in request.fixturenames:
        asyncio.run(idle(request.getfixturevalue("engine")))


async def idle(engine: AsyncEngine) -> None:
    for _ in range(100):
        stats = (await engine.report())["stats"]
        if stats["num_running"] == stats["num_waiting"] == stats["kv_usage"] == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"requests are left: {stats}")
