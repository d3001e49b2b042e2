"""/invocations answers as the endpoints that it stands for."""

from __future__ import annotations

from typing import Any

import pytest

from framework import AsyncEngine
from framework.server.config import ServerConfig

from .servers import HTTPServer, serving

MESSAGES = [{"role": "user", "content": "def f(x):"}]


def without_id(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", {"messages": MESSAGES}), ("/v1/completions", {"prompt": "import os\n"})]
)
def test_answers_are_those_of_the_other_endpoint(server: HTTPServer, path: str, body: dict[str, Any]) -> None:
    given: dict[str, Any] = {**body, "seed": 5, "max_tokens": 6}
    server.post(path, **given)  # from here on the cache holds the prompt
    status, answer = server.post("/invocations", **given)
    assert status == 200 and without_id(answer) == without_id(server.post(path, **given)[1])
    chunks, expected = server.stream("/invocations", **given), server.stream(path, **given)
    assert list(map(without_id, chunks)) == list(map(without_id, expected))


@pytest.mark.parametrize("body", [{}, {"messages": [], "temperature": -1}, {"prompt": 5}, {"messages": MESSAGES, "model": "no"}])
def test_errors_are_those_of_the_other_endpoint(server: HTTPServer, body: dict[str, Any]) -> None:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    status, answer = server.post("/invocations", **body)
    assert 400 <= status < 500
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (
        (expected := server.post(path, **body))[0],
        expected[1]["error"]["type"],
        expected[1]["error"]["param"],
    )


def test_no_key_is_asked_for(engine: AsyncEngine) -> None:
    with serving(engine, ServerConfig(api_key=["k"])) as server:
        assert server.post("/invocations", messages=MESSAGES, max_tokens=1)[0] == 200
        assert server.request("GET", "/ping") == (200, "")
        assert server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1)[0] == 401
