"""Requests that nobody waits for end in the engine's process, long before their last token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from framework import AsyncEngine, EngineConfig, SamplingParams
from framework.config import CacheConfig

MANY = 500
ENDLESS = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = AsyncEngine(EngineConfig(cache=CacheConfig(num_blocks=256), num_threads=1))
    yield engine
    engine.shutdown()


async def leave(engine: AsyncEngine) -> None:
    async for _ in engine.generate("import sys\n", ENDLESS):
        break


async def cancel(engine: AsyncEngine) -> None:
    async def read() -> None:
        async for _ in engine.generate("import sys\n", ENDLESS):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def abort(engine: AsyncEngine) -> None:
    reasons = []
    async for output in engine.generate("import sys\n", ENDLESS, request_id="endless"):
        reasons.append(output.outputs[0].finish_reason)
        if len(reasons) == 1:
            await engine.abort("endless")
    assert reasons[-1] == "abort"


@pytest.mark.parametrize("end", [leave, cancel, abort])
def test_no_token_is_sampled_for_nobody(engine: AsyncEngine, end: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def run() -> int:
        before = (await engine.report())["stats"]["num_output_tokens"]
        await end(engine)
        while True:
            stats = (await engine.report())["stats"]
            num_sampled = stats["num_output_tokens"] - before
            if num_sampled >= MANY or not stats["num_running"] + stats["num_waiting"]:
                return num_sampled
            await asyncio.sleep(0.01)

    assert 1 <= asyncio.run(run()) < MANY
