"""Structured output where the engine has a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from typing import Any

import pytest

from framework import AsyncEngine, EngineConfig, SamplingParams, StructuredOutputsParams
from framework.config import CacheConfig
from framework.engine.prompts import EngineInput
from framework.engine_process import WAIT_S, _serve

from ..engines import make_engine, token_params


def test_streams_follow_their_grammar_or_raise_what_is_the_users_fault() -> None:
    engine = AsyncEngine(EngineConfig(cache=CacheConfig(num_blocks=100), num_threads=1))

    async def last(**constraint: Any) -> str:
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint), seed=0)
        text = ""
        async for output in engine.generate("import", params):
            text = output.outputs[0].text
        return text

    async def run() -> None:
        fine = asyncio.create_task(last(regex="[0-9]{4}"))
        with pytest.raises(ValueError, match=r'^structured_outputs: json cannot be compiled: .*"not"'):
            await last(json={"not": {}})
        assert (await last(choice=["yes"])) == "yes" and (await fine).isdecimal() and not engine.errored
        stream = engine.generate("a", SamplingParams(max_tokens=500, structured_outputs={"regex": "[a-z]{400}"}))  # type: ignore[arg-type]
        await anext(stream)
        await stream.aclose()  # a client that is gone
        assert (await last(regex="[x-z]{3}")) and (await engine.report())["stats"]["num_running"] == 0

    try:
        asyncio.run(run())
    finally:
        engine.shutdown()


def test_a_process_whose_requests_all_wait_for_grammars_sleeps_and_listens() -> None:
    engine, steps = make_engine(), 0
    engine.add_request("waits", EngineInput([1] * 4), token_params(max_tokens=3))
    (request,) = engine.scheduler.requests
    ready_at = time.monotonic() + 0.4
    request.is_ready = lambda: time.monotonic() > ready_at
    step = engine.step

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return step()

    engine.step = counted  # type: ignore[method-assign]
    ours, theirs = multiprocessing.Pipe()
    server = threading.Thread(target=_serve, args=(engine, theirs), daemon=True)
    server.start()
    outputs = ours.recv()
    while not outputs[-1].finished:
        outputs = ours.recv()
    ours.send(None)
    server.join(5)
    assert not server.is_alive() and outputs[-1].error is None
    assert steps <= 0.4 / WAIT_S + 20
