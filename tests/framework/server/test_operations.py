"""Health, version, load, models, and the tokenizer."""

from __future__ import annotations

from framework import __version__
from framework.llm import LLM

from .servers import HTTPServer


def test_health_version_and_load(server: HTTPServer) -> None:
    for path in ("/health", "/ping"):
        assert server.request("GET", path) == (200, "")
    assert server.request("POST", "/ping") == (200, "")
    assert server.request("GET", "/version") == (200, {"version": __version__})
    assert server.request("GET", "/load") == (200, {"server_load": 0})


def test_load_counts_what_is_in_work(server: HTTPServer) -> None:
    with server.open("/v1/completions", prompt="a", n=3, max_tokens=500, ignore_eos=True, stream=True) as connection:
        connection.recv(100)
        assert server.request("GET", "/load") == (200, {"server_load": 3})


def test_the_card_of_the_model(server: HTTPServer) -> None:
    status, answer = server.request("GET", "/v1/models")
    (card,) = answer["data"]
    assert status == 200 and answer["object"] == "list"
    assert (card["id"], card["object"], card["max_model_len"], card["root"]) == ("tiny", "model", 2048, "tiny")
    assert server.request("GET", "/v1/models/tiny")[1]["id"] == "tiny"


def test_tokens_and_back(server: HTTPServer, offline: LLM) -> None:
    text = "def f(ä):\n    return 'ß😀'"
    tokens = offline.get_tokenizer().encode(text)
    status, answer = server.post("/tokenize", prompt=text, return_token_strs=True)
    assert status == 200 and answer["tokens"] == tokens and answer["count"] == len(tokens) and answer["max_model_len"] == 2048
    assert answer["token_strs"] == offline.get_tokenizer().convert_ids_to_tokens(tokens)
    plain = server.post("/tokenize", prompt=text, add_special_tokens=False)[1]["tokens"]
    assert plain == offline.get_tokenizer().encode(text, add_special_tokens=False) != tokens
    assert server.post("/detokenize", tokens=plain) == (200, {"prompt": text})
    for tokens in ([-1], [2048], [2**40], "ab"):
        assert server.post("/detokenize", tokens=tokens)[0] == 400


def test_the_tokens_of_a_conversation(server: HTTPServer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    status, answer = server.post("/tokenize", messages=messages)
    assert status == 200
    used = server.post("/v1/chat/completions", messages=messages, max_tokens=1, return_token_ids=True)[1]
    assert answer["tokens"] == used["prompt_token_ids"]
