"""What cannot be served: the status code and the error object of each, and nothing else is disturbed."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import pytest
from pydantic import BaseModel, ValidationError

from framework import AsyncEngine, SamplingParams
from framework.outputs import CompletionOutput
from framework.server.config import ServerConfig
from framework.server.errors import MAX_INPUT, MAX_MESSAGE, APIError, shown
from framework.server.protocol.chat import ChatBody
from framework.server.protocol.common import MAX_TOOLS
from framework.server.protocol.completions import CompletionBody
from framework.server.protocol.responses import ResponsesBody

from .scripted import ScriptedEngine
from .servers import HTTPServer, serving

PATH = "/v1/completions"


def check_envelope(status: int, answer: Any) -> dict:
    assert answer.keys() == {"error"} and answer["error"].keys() == {"message", "type", "param", "code"}, answer
    assert answer["error"]["code"] == status and answer["error"]["message"]
    return answer["error"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("n", {"n": -1}),
        ("n", {"n": 0}),
        ("n", {"n": 10**9}),
        ("n", {"n": 2, "temperature": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -5}),
        ("min_tokens", {"min_tokens": 9, "max_tokens": 8}),
        ("prompt", {"max_tokens": 5000}),
        ("prompt", {"prompt": "word " * 4000}),
        ("prompt", {"prompt": "x" * 2**20}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": {"a": 1}}),
        ("prompt", {"prompt": [1, -2]}),
        ("prompt", {"prompt": [1, 2**40]}),
        ("prompt", {"prompt": [1, 2047, 2048]}),
        ("prompt", {"prompt": [1, "a"]}),
        ("prompt", {"prompt": ["a"] * 1025}),
        (None, {"prompt": "half a pair: \ud800"}),
        ("temperature", {"temperature": 2.5}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": 0}),
        ("top_k", {"top_k": -3}),
        ("seed", {"seed": 2**70}),
        ("logprobs", {"logprobs": 21}),
        ("logprobs", {"logprobs": -1}),
        ("stop", {"stop": ["x"] * 65}),
        ("stop", {"stop": "x" * 9000}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": ["\udfff"]}),
        ("logit_bias", {"logit_bias": {"a": 1}}),
        ("logit_bias", {"logit_bias": {"99999": 1}}),
        ("allowed_token_ids", {"allowed_token_ids": []}),
        ("stop_token_ids", {"stop_token_ids": [4096]}),
        ("bad_words", {"bad_words": [" "]}),
        ("bad_words", {"bad_words": ["x"] * 1025}),
        ("bad_words", {"bad_words": ["x" * 20_000]}),
        ("stop_token_ids", {"stop_token_ids": [1] * 2049}),
        ("allowed_token_ids", {"allowed_token_ids": [1] * 2049}),
        ("logit_bias", {"logit_bias": {"1".zfill(i): 1 for i in range(1, 2050)}}),
        ("logit_bias", {"logit_bias": {str(i): "x" for i in range(2**18 + 1)}}),
        ("n", {"prompt": ["a"] * 100, "n": 100}),
        ("suffix", {"suffix": "tail"}),
        ("prompt_embeds", {"prompt_embeds": "abc"}),
        ("kv_transfer_params", {"kv_transfer_params": {}}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": -2}),
        ("request_id", {"request_id": "a\nb"}),
        ("cache_salt", {"cache_salt": ""}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_cannot_be(server: HTTPServer, param: str | None, body: dict, stream: bool) -> None:
    if stream and param in ("stream_options",):
        pytest.skip("possible in a stream")
    status, answer = server.post(PATH, **{"prompt": "a", "stream": stream, **body})
    assert status == 400, answer
    error = check_envelope(status, answer)
    assert error["param"] == param and error["type"] in ("BadRequestError", "Bad Request")
    assert len(error["message"]) < 3000, "faulty values are not told in full"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "\xc3\x28"}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a", "n": ' + b"9" * 10_000 + b"}",
        b"{}",
    ],
    ids=["empty", "cut", "null", "list", "text", "bytes", "half a character", "deep", "digits", "no prompt"],
)
def test_bodies_that_are_none(server: HTTPServer, body: bytes) -> None:
    status, answer = server.request("POST", PATH, body)
    assert status == 400
    check_envelope(status, answer)


def test_the_kind_of_a_body_counts(server: HTTPServer) -> None:
    status, answer = server.request("POST", PATH, b'{"prompt": "a"}', {"content-type": "text/plain"})
    assert status == 400
    check_envelope(status, answer)


def test_models_paths_and_methods_that_are_not_there(server: HTTPServer) -> None:
    for method, path, body, expected, kind in (
        ("POST", PATH, {"model": "x", "prompt": "a"}, 404, "NotFoundError"),
        ("POST", "/v1/chat/completions", {"model": "\ud800", "messages": [{"role": "user", "content": "a"}]}, 404, "NotFoundError"),
        ("GET", "/v1/models/x", None, 404, "NotFoundError"),
        ("GET", "/nowhere", None, 404, "NotFoundError"),
        ("GET", PATH, None, 405, "Method Not Allowed"),
        ("POST", "/v1/embeddings", {"input": "a"}, 501, "NotImplementedError"),
        ("POST", "/v1/audio/transcriptions", None, 501, "NotImplementedError"),
    ):
        status, answer = server.request(method, path, body)
        assert (status, check_envelope(status, answer)["type"]) == (expected, kind)


def test_priorities_are_integers(server: HTTPServer) -> None:
    assert server.post(PATH, prompt="a", max_tokens=1, priority=-3)[0] == 200
    assert server.request("POST", PATH, {"prompt": "a", "max_tokens": 1}, {"X-Vllm-Priority": "7"})[0] == 200
    status, answer = server.request("POST", PATH, {"prompt": "a"}, {"X-Vllm-Priority": "high"})
    assert status == 400 and check_envelope(status, answer)["param"] == "priority"
    assert server.post(PATH, prompt="a", max_tokens=1, priority=10**30)[0] in (200, 400)


def test_many_faults_are_told_in_part(server: HTTPServer) -> None:
    wrong = {"n": "x", "top_k": [], "seed": 0.5, **{f"{name}_penalty": "x" for name in ("presence", "frequency", "repetition")}}
    status, answer = server.post(PATH, prompt={}, **wrong)
    message = check_envelope(status, answer)["message"]
    assert status == 400 and 5 <= message.count("; ") <= 10 and len(message) < 3000


@pytest.mark.parametrize("start", ["", '"a",', "[1],", "{},"])
@pytest.mark.parametrize("item", ["1,", "[],", "{},", '"",'])
def test_a_fault_after_a_million_items_takes_no_time(server: HTTPServer, start: str, item: str) -> None:
    body = f'{{"prompt": [{start}{item * 500_000}null]}}'.encode()
    begin = time.process_time()  # of this process, where the server is
    assert server.request("POST", PATH, body)[0] == 400
    assert time.process_time() - begin < 4


def test_more_tools_than_anybody_needs_are_refused(server: HTTPServer) -> None:
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(MAX_TOOLS + 1)]
    flat = [{"type": "function", "name": f"f{i}"} for i in range(MAX_TOOLS + 1)]
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": tools}),
        ("/v1/responses", {"input": "a", "tools": flat}),
    ):
        status, answer = server.post(path, **body)
        assert status == 400 and check_envelope(status, answer)["param"] == "tools" and "1024" in answer["error"]["message"]


MANY = 10_000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ResponsesBody, {"input": [1] * MANY}),
        (ResponsesBody, {"input": "a", "tools": [1] * MANY}),
        (ResponsesBody, {"input": "a", "metadata": {str(i): 1 for i in range(MANY)}}),
        (ChatBody, {"messages": [], "documents": [{str(i): 1 for i in range(MANY)}]}),
        (ChatBody, {"messages": [1] * MANY}),
        (CompletionBody, {"prompt": [[1], *[None] * MANY]}),
        (CompletionBody, {"prompt": "a", "logit_bias": {str(i): "x" for i in range(MANY)}}),
    ],
)
def test_of_many_faults_few_are_looked_for(kind: type[BaseModel], body: dict[str, Any]) -> None:
    """All of a million would take minutes."""
    with pytest.raises(ValidationError) as found:
        kind.model_validate(body)
    assert found.value.error_count() < 10


class Told:
    """Knows how often it was."""

    times = 0

    def __repr__(self) -> str:
        self.times += 1
        return "told"


def test_what_is_told_of_a_long_value_takes_no_longer_than_telling_it() -> None:
    item = Told()
    assert shown([item] * MANY).startswith("[told, told, ") and item.times < 10
    assert shown(dict.fromkeys(range(MANY), item)).startswith("{0: told, 1: told, ") and item.times < 20
    assert shown("x" * MANY) == "x" * MAX_INPUT + "..." and len(shown(["x" * MANY] * MANY)) < 2 * MAX_INPUT
    assert len(APIError(400, "x" * MANY).message) <= MAX_MESSAGE + 3


@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": {"choice": ["AAA"]}, "allowed_token_ids": [7]},
        {"structured_outputs": {"choice": ["A"]}, "bad_words": ["A"]},
        {"stop_token_ids": list(range(2048)), "min_tokens": 5},
        {"stop_token_ids": list(range(2048)), "structured_outputs": {"regex": "[ab]+"}},
        {"structured_outputs": {"regex": "((a{1000}){1000}){1000}"}},
    ],
    ids=lambda body: "-".join(body),
)
def test_what_leaves_no_token_is_the_requests_own_fault(server: HTTPServer, body: dict[str, Any]) -> None:
    status, answer = server.post(PATH, prompt="a", max_tokens=8, **body)
    assert status == 400 and check_envelope(status, answer)["message"]


class FailedRow(ScriptedEngine):
    """Whose second token is none, because the logits were NaN."""

    def _completion(self, index: int, params: SamplingParams) -> list[CompletionOutput]:
        tokens = super()._completion(index, params)
        tokens[-1].finish_reason = "error"
        return tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
    ],
)
def test_a_completion_that_failed_is_an_error(path: str, body: dict[str, Any]) -> None:
    with serving(cast(AsyncEngine, FailedRow(["a", "b"])), ServerConfig()) as server:
        status, answer = server.post(path, **body)
        assert status == 500 and "computed no numbers" in answer["error"]["message"]
        status, text = server.post(path, **body, stream=True)
        *_, error, done = text.strip().split("\n\n")
        assert status == 200 and "computed no numbers" in json.loads(error.removeprefix("data: "))["error"]["message"]
        assert done == "data: [DONE]"
