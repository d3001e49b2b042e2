"""Structured output over HTTP: what comes out, and what is refused with which words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from .servers import HTTPServer
from .test_errors import check_envelope

COMPLETIONS = "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{4}"}}, "[0-9]{4}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "a|b"),
        ({"structured_outputs": {"regex": "(a+)+b"}, "max_tokens": 64}, "a+b?"),
        ({"structured_outputs": {"regex": "[xy]{3}"}, "ignore_eos": True, "min_tokens": 10}, "[xy]{3}"),
    ],
)
def test_answers_follow_their_constraint(server: HTTPServer, asked: dict[str, Any], pattern: str) -> None:
    status, answer = server.post(COMPLETIONS, **{"model": "tiny", "prompt": "a", "max_tokens": 16, "n": 2, "seed": 1, **asked})
    assert status == 200, answer
    assert all(re.fullmatch(pattern, choice["text"]) for choice in answer["choices"]), answer
    chunks = server.stream(COMPLETIONS, **{"model": "tiny", "prompt": "a", "max_tokens": 16, "seed": 1, **asked})
    assert re.fullmatch(pattern, "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]))


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}, {"type": "json_object"}],
)
def test_response_formats_of_a_chat(server: HTTPServer, response_format: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hello"}]
    status, answer = server.post(
        "/v1/chat/completions", model="tiny", messages=messages, response_format=response_format, max_tokens=400, seed=3
    )
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop" and isinstance(json.loads(choice["message"]["content"]), dict)
    if "json_schema" in response_format:
        assert json.loads(choice["message"]["content"]).keys() == {"n", "ok"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "exactly one of"),
        ({"structured_outputs": {}}, "exactly one of"),
        ({"structured_outputs": {"choice": []}}, "choice="),
        ({"structured_outputs": {"regex": "a\0"}}, "without NUL"),
        ({"structured_outputs": {"regex": "("}}, "regex cannot be compiled"),
        ({"structured_outputs": {"jsn": {}}}, "has no 'jsn'"),
        ({"structured_outputs": {"json": {"type": "integer", "minimum": 2, "maximum": 1}}}, "minimum"),
        ({"structured_outputs": {"json": {"not": {}}}}, '"not"'),
        ({"structured_outputs": {"json": {"$ref": "http://localhost/x"}}}, "nothing is fetched"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/a"}}}}, r"\$defs|Pointer"),
    ],
)
def test_constraints_that_cannot_be_are_refused(server: HTTPServer, asked: dict[str, Any], words: str, stream: bool) -> None:
    status, answer = server.post(COMPLETIONS, model="tiny", prompt="a", stream=stream, **asked)
    assert status == 400, answer
    assert re.search(words, check_envelope(status, answer)["message"])
    status, answer = server.post(COMPLETIONS, model="tiny", prompt="a", max_tokens=2)
    assert status == 200, "nothing else is disturbed"
