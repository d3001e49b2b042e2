"""Keys: which paths ask for one, and which keys open them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from framework import AsyncEngine
from framework.server.config import ServerConfig

from .servers import HTTPServer, serving


@pytest.fixture(scope="module")
def guarded(engine: AsyncEngine) -> Iterator[HTTPServer]:
    with serving(engine, ServerConfig(api_key=["first", "zweiter-ü"])) as server:
        yield server


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer firstx", "Basic first", "first", "Bearer first first"]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/v1/chat/completions", "/v1/nowhere"])
def test_without_a_key_nothing_is_told(guarded: HTTPServer, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    assert guarded.request("POST", path, {"prompt": "a"}, headers) == (401, {"error": "Unauthorized"})


def test_without_a_key_no_body_is_read(guarded: HTTPServer) -> None:
    assert guarded.request("POST", "/v1/completions", b"x" * 10_000_000)[0] == 401


@pytest.mark.parametrize("header", ["Bearer first", "bearer first", "Bearer zweiter-ü"])
def test_every_key_opens(guarded: HTTPServer, header: str) -> None:
    headers = {"Authorization": header.encode().decode("latin-1")}
    assert guarded.request("GET", "/v1/models", None, headers)[0] == 200


def test_what_operators_ask_needs_no_key(guarded: HTTPServer) -> None:
    for path in ("/health", "/ping", "/version", "/load"):
        assert guarded.request("GET", path)[0] == 200
    assert guarded.request("OPTIONS", "/v1/models")[0] == 405, "a browser asks first, without a key"


def test_a_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServerConfig().api_keys() == []
    monkeypatch.setenv("VLLM_API_KEY", "other")
    assert ServerConfig().api_keys() == ["other"]
    assert ServerConfig(api_key=["given"]).api_keys() == ["given"]
