"""Bodies with faults at random: no crash, nothing left behind, and answers as before."""

from __future__ import annotations

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest

from framework import AsyncEngine
from framework.server.protocol.chat import ChatBody
from framework.server.protocol.completions import CompletionBody

from .servers import HTTPServer

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
KNOWN = {"prompt": "class A:\n", "max_tokens": 20, "temperature": 0}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, float("nan"), float("-inf")),
    *("", "a", "\0", "\ud800", "ä😀", "x" * 3000, "1", "stop", "json_schema", "Infinity"),
    *([], [[]], [0], [-1], [2047, 2048], [None], ["a"], ["a", 1], [[1], ["a"]], [{}], {}, {"a": 1}, {"1": 5}, {"type": "text"}),
]
FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, "tokens"})


def fuzzed(seed: int) -> tuple[str, bytes]:
    """A path and a body: a good one with a few fields changed, its text sometimes cut or overwritten."""
    rng = random.Random(seed)
    path = rng.choice(PATHS)
    body: dict[str, Any] = {"max_tokens": 2}
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": "hello"}]
    elif path == "/detokenize":
        body["tokens"] = [5, 6]
    else:
        body["prompt"] = "hello"
    for _ in range(rng.randrange(4)):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    if rng.random() < 0.1 and "messages" in body:
        body["messages"] = [{rng.choice(["role", "content", "tool_calls"]): rng.choice(VALUES) for _ in range(3)}]
    if path == "/v1/chat/completions" and body.get("max_tokens") is None:
        body["max_tokens"] = 2  # else an answer may fill the context
    text = bytearray(json.dumps(body).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randrange(1, 6)):
            text[rng.randrange(len(text))] = rng.randrange(256)
    if rng.random() < 0.05:
        del text[rng.randrange(len(text)) :]
    return path, bytes(text)


def send(server: HTTPServer, seeds: range) -> dict[int, int]:
    """How often which status came. Every answer is whole."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    counts: dict[int, int] = {}
    for seed in seeds:
        path, body = fuzzed(seed)
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.headers["content-type"] == "application/json":
            answer = json.loads(text)
            assert (response.status == 200) == ("error" not in answer), (seed, answer)
        else:
            assert response.status == 200 and text.endswith(b"data: [DONE]\n\n"), seed
        assert response.status in (200, 400, 404, 501), (seed, text)
        counts[response.status] = counts.get(response.status, 0) + 1
    connection.close()
    return counts


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bodies_with_faults(engine: AsyncEngine, server: HTTPServer, count: int) -> None:
    known = server.post(PATHS[0], **KNOWN)[1]["choices"]
    with ThreadPoolExecutor(8) as pool:
        share = count // 8
        found = list(pool.map(lambda i: send(server, range(i * share, (i + 1) * share)), range(8)))
    assert sum(counts.get(200, 0) for counts in found) > count // 10 and sum(counts.get(400, 0) for counts in found) > count // 10
    assert server.post(PATHS[0], **KNOWN)[1]["choices"] == known
    stats = asyncio.run(engine.report())["stats"]
    assert stats["num_running"] == stats["num_waiting"] == stats["kv_usage"] == 0
    assert server.request("GET", "/load")[1] == {"server_load": 0}
