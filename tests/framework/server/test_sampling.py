"""What a request asks for is what the engine is told."""

from __future__ import annotations

from typing import Any, cast

import pytest

from framework import AsyncEngine
from framework.server.config import ServerConfig

from .scripted import ScriptedEngine
from .servers import HTTPServer, serving

BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "a"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/responses", {"input": "a"}),
]
GIVEN: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 7,
    "min_p": 0.05,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.4,
    "repetition_penalty": 1.1,
    "seed": 9,
    "stop": ["x"],
    "stop_token_ids": [5],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "min_tokens": 2,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "logit_bias": {6: 1.5},
    "allowed_token_ids": [5, 6],
    "bad_words": ["bad"],
}


def post(engine: ScriptedEngine, path: str, body: dict[str, Any], **config: Any) -> Any:
    with serving(cast(AsyncEngine, engine), ServerConfig(**config)) as server:
        status, answer = server.post(path, **body)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_every_parameter_reaches_the_engine(path: str, body: dict[str, Any]) -> None:
    engine = ScriptedEngine(["a"])
    post(engine, path, {**body, **GIVEN, "priority": 3, "cache_salt": "mine"})
    (params,) = engine.params
    assert {name: getattr(params, name) for name in GIVEN} == GIVEN
    assert (engine.priorities, engine.salts) == ([3], ["mine"])


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_what_is_not_asked_for_is_what_the_model_recommends(path: str, body: dict[str, Any]) -> None:
    engine = ScriptedEngine(["a"])
    engine.inputs._generation = {"temperature": 0.25, "top_k": 7}
    post(engine, path, {**body, "top_k": 3, "temperature": None})
    assert (engine.params[0].temperature, engine.params[0].top_k) == (0.25, 3)


@pytest.mark.parametrize(("path", "body"), BODIES[:2])
def test_a_priority_may_come_as_a_header(path: str, body: dict[str, Any]) -> None:
    engine = ScriptedEngine(["a"])
    with serving(cast(AsyncEngine, engine), ServerConfig()) as server:
        for more in ({}, {"priority": -2}):
            assert server.request("POST", path, {**body, **more}, {"X-Vllm-Priority": "7"})[0] == 200
    assert engine.priorities == [7, -2], "the body goes before"


@pytest.mark.parametrize(("path", "body"), BODIES[:2])
def test_two_constraints_are_refused(server: HTTPServer, path: str, body: dict[str, Any]) -> None:
    two = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    status, answer = server.post(path, **body, **two)
    assert status == 400 and answer["error"]["param"] == "response_format", answer
    assert server.post(path, **body, **two | {"response_format": {"type": "text"}}, max_tokens=2)[0] == 200


@pytest.mark.parametrize(("path", "body"), BODIES[:2])
def test_a_server_may_end_all_streams_with_the_usage(path: str, body: dict[str, Any]) -> None:
    with serving(cast(AsyncEngine, ScriptedEngine(["a", "b"])), ServerConfig(enable_force_include_usage=True)) as server:
        *chunks, last = server.stream(path, **body)
    assert last["usage"]["completion_tokens"] == 2 and not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": ["a", "b"]}), *BODIES[1:]])
def test_tokens_of_the_cache_are_told(path: str, body: dict[str, Any]) -> None:
    with serving(cast(AsyncEngine, ScriptedEngine(["a", "b"])), ServerConfig(enable_prompt_tokens_details=True)) as server:
        usage = server.post(path, **body)[1]["usage"]
        if "input" not in body:
            assert server.stream(path, **body, stream_options={"include_usage": True})[-1]["usage"] == usage
    details = usage["input_tokens_details" if "input" in body else "prompt_tokens_details"]
    assert details["cached_tokens"] == ScriptedEngine.CACHED * len(body.get("prompt", "a"))
