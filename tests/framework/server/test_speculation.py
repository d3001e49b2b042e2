"""Clients that leave while drafts are made for them, and checked: what others get is what they get without drafts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from framework import AsyncEngine
from framework.config import ParallelConfig
from framework.server.config import ServerConfig
from framework.speculation.config import SpeculativeConfig

from .conftest import idle
from .servers import HTTPServer, engine_config, serving

PATH = "/v1/completions"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
STAY: list[dict[str, Any]] = [
    {"prompt": "class A:\n", "temperature": 0, "max_tokens": 60, "ignore_eos": True},
    {"prompt": "import os\n", "temperature": 0.8, "seed": 1, "max_tokens": 60, "n": 2},
    {"prompt": "x = ", "temperature": 0.7, "seed": 2, "max_tokens": 40, "structured_outputs": {"json": SCHEMA}},
    {"prompt": "def f(a, b):\n", "temperature": 0, "max_tokens": 50, "logprobs": 2, "stop": ["return"]},
]


@pytest.fixture(scope="module", params=[pytest.param("suffix, two engines", marks=pytest.mark.slow), "mtp"])
def drafting(request: pytest.FixtureRequest) -> Iterator[tuple[AsyncEngine, HTTPServer]]:
    name = request.param
    speculative = SpeculativeConfig("mtp", 3, model="tiny-mtp") if name == "mtp" else SpeculativeConfig("suffix", 5)
    parallel = ParallelConfig(dp=1 if name == "mtp" else 2)
    engine = AsyncEngine(replace(engine_config(), speculative_config=speculative, parallel=parallel))
    with serving(engine, ServerConfig()) as server:
        yield engine, server
    engine.shutdown()


def test_others_do_not_notice(server: HTTPServer, drafting: tuple[AsyncEngine, HTTPServer]) -> None:
    engine, with_drafts = drafting

    def leave(i: int) -> None:
        constraint = {"structured_outputs": {"json": SCHEMA}} if i % 2 else {}
        body = {"prompt": f"{i} = ", "max_tokens": 500, "n": 1 + i % 3, "temperature": 0.5, **constraint}
        with with_drafts.open(PATH, **body, stream=True) as connection:
            if i % 4:
                connection.recv(50 * i)

    def answer(of: HTTPServer, body: dict[str, Any]) -> Any:
        status, found = of.post(PATH, **body)
        assert status == 200, found
        return found["choices"]

    expected = [answer(server, body) for body in STAY]
    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(answer, with_drafts, body) for body in STAY * 2]
        list(pool.map(leave, range(40)))
        assert [future.result() for future in found] == expected * 2
    asyncio.run(idle(engine))
    accepted = re.findall(r"vllm:spec_decode_num_accepted_tokens_total{.*} (\S+)", with_drafts.request("GET", "/metrics")[1])
    assert accepted and all(float(count) > 0 for count in accepted), "by every engine"
