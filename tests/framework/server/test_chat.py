"""/v1/chat/completions."""

from __future__ import annotations

import pytest

from framework import AsyncEngine, SamplingParams
from framework.llm import LLM
from framework.server.config import ServerConfig

from .servers import HTTPServer, serving

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Write a function\nthat adds"}]
GREEDY = {"temperature": 0, "max_tokens": 16}


def chat(server: HTTPServer, **body: object) -> dict:
    status, answer = server.post(PATH, **body)
    assert status == 200, answer
    return answer


def test_an_answer_is_that_of_the_offline_interface(server: HTTPServer, offline: LLM) -> None:
    whole = offline.chat(MESSAGES, SamplingParams(**GREEDY), use_tqdm=False)[0]
    answer = chat(server, messages=MESSAGES, return_token_ids=True, **GREEDY)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == whole.outputs[0].text and choice["message"]["role"] == "assistant"
    assert (choice["token_ids"], answer["prompt_token_ids"]) == (whole.outputs[0].token_ids, whole.prompt_token_ids)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["usage"]["prompt_tokens"] == len(whole.prompt_token_ids)


def test_a_stream_begins_with_the_role_and_adds_up(server: HTTPServer) -> None:
    body = {"messages": MESSAGES, "n": 2, "seed": 4, "max_tokens": 10, "logprobs": True, "top_logprobs": 2}
    whole = chat(server, **body)
    options = {"include_usage": True}
    *chunks, last = server.stream(PATH, stream_options=options, **body)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for index in range(2):
        first, *rest = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
        assert all("role" not in choice["delta"] for choice in rest)
        expected = whole["choices"][index]
        assert "".join(choice["delta"]["content"] for choice in rest) == expected["message"]["content"]
        assert [entry for choice in rest for entry in choice["logprobs"]["content"]] == expected["logprobs"]["content"]
        assert [choice["finish_reason"] for choice in rest] == [None] * (len(rest) - 1) + [expected["finish_reason"]]


def test_log_probabilities_are_the_offline_ones(server: HTTPServer, offline: LLM) -> None:
    whole = offline.chat(MESSAGES, SamplingParams(**GREEDY, logprobs=3), use_tqdm=False)[0].outputs[0]
    content = chat(server, messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY)["choices"][0]["logprobs"]["content"]
    for entry, token, expected in zip(content, whole.token_ids, whole.logprobs):
        assert entry["logprob"] == pytest.approx(expected[token].logprob)
        assert bytes(entry["bytes"]).decode() == entry["token"] == expected[token].decoded_token
        best = sorted((p for p in expected.values() if p.rank <= 3), key=lambda p: p.rank)
        assert [(p["token"], p["logprob"]) for p in entry["top_logprobs"]] == [(p.decoded_token, p.logprob) for p in best]
    none = chat(server, messages=MESSAGES, logprobs=True, **GREEDY)["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in none)


def test_without_a_limit_an_answer_may_fill_the_context(server: HTTPServer) -> None:
    answer = chat(server, messages=MESSAGES, ignore_eos=True, temperature=0)
    assert answer["usage"]["total_tokens"] == 2048 and answer["choices"][0]["finish_reason"] == "length"
    newer = chat(server, messages=MESSAGES, max_completion_tokens=3, max_tokens=9, ignore_eos=True)
    assert newer["usage"]["completion_tokens"] == 3


def test_content_may_come_in_parts_of_text(server: HTTPServer) -> None:
    parts = [{"type": "text", "text": "Write a function"}, {"type": "text", "text": "that adds"}]
    whole = chat(server, messages=MESSAGES, **GREEDY)
    assert chat(server, messages=[{"role": "user", "content": parts}], **GREEDY)["choices"] == whole["choices"]


def test_the_last_message_can_be_continued_and_echoed(server: HTTPServer) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "def add(a, b):"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, **GREEDY}
    plain = chat(server, **body)["choices"][0]["message"]["content"]
    assert chat(server, echo=True, **body)["choices"][0]["message"]["content"] == "def add(a, b):" + plain
    first, *_ = server.stream(PATH, echo=True, **body)
    assert first["choices"][0]["delta"]["content"] == "def add(a, b):"


def test_stop_strings_are_told_as_the_reason(server: HTTPServer) -> None:
    stop = chat(server, messages=MESSAGES, **GREEDY)["choices"][0]["message"]["content"][4:9]
    choice = chat(server, messages=MESSAGES, stop=stop, **GREEDY)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    last = server.stream(PATH, messages=MESSAGES, stop=stop, **GREEDY)[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_usage_in_every_chunk_is_that_of_its_choice(server: HTTPServer) -> None:
    body = {"messages": MESSAGES, "n": 2, "seed": 1, "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = server.stream(PATH, stream_options=options, **body)
    counts = [0, 0]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        counts[choice["index"]] += len(choice.get("token_ids", ()))
        assert chunk["usage"]["completion_tokens"] == counts[choice["index"]]
    assert counts == [4, 4] and last["usage"]["completion_tokens"] == 8


def test_prompts_are_cut_on_request(server: HTTPServer) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True}
    ids = chat(server, **body)["prompt_token_ids"]
    assert chat(server, **body, truncate_prompt_tokens=5)["prompt_token_ids"] == ids[-5:]
    assert chat(server, **body, truncate_prompt_tokens=5, truncation_side="right")["prompt_token_ids"] == ids[:5]


def test_tokens_can_be_named_by_their_ids(server: HTTPServer, engine: AsyncEngine) -> None:
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1, "return_token_ids": True, **GREEDY}
    with serving(engine, ServerConfig(return_tokens_as_token_ids=True)) as other:
        found = [chat(server, return_tokens_as_token_ids=True, **body), chat(other, **body)]
    for choice in (answer["choices"][0] for answer in found):
        told = [f"token_id:{token}" for token in choice["token_ids"]]
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == told
        assert [entry["top_logprobs"][0]["token"] for entry in choice["logprobs"]["content"]] == told


def test_without_a_prompt_for_its_answer_the_message_has_the_last_ones_role(server: HTTPServer) -> None:
    body = {"messages": MESSAGES, "add_generation_prompt": False, "max_tokens": 1}
    assert chat(server, **body)["choices"][0]["message"]["role"] == "user"
    assert server.stream(PATH, **body)[0]["choices"][0]["delta"]["role"] == "user"


def test_a_template_may_come_with_the_server_but_not_with_a_request(server: HTTPServer, engine: AsyncEngine, offline: LLM) -> None:
    template = "{% for message in messages %}{{ message.content }}!{% endfor %}{{ tail }}"
    status, answer = server.post(PATH, messages=MESSAGES, chat_template=template)
    assert status == 400 and answer["error"]["param"] == "chat_template"
    with serving(engine, ServerConfig(chat_template=template)) as other:
        found = chat(other, messages=MESSAGES, chat_template_kwargs={"tail": "?"}, **GREEDY)["choices"][0]["message"]["content"]
    tokens = offline.get_tokenizer().encode(MESSAGES[0]["content"] + "!?", add_special_tokens=False)
    assert found == offline.generate(tokens, SamplingParams(**GREEDY), use_tqdm=False)[0].outputs[0].text


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("messages", {"messages": []}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
        ("messages", {"messages": [{"content": "no role"}]}),
        ("messages", {"messages": MESSAGES, "continue_final_message": True}),
        ("top_logprobs", {"messages": MESSAGES, "top_logprobs": 2}),
        ("logprobs", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 500}),
        ("chat_template_kwargs", {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}}),
        ("audio", {"messages": MESSAGES, "audio": {"voice": "x"}}),
    ],
)
def test_what_cannot_be_is_refused(server: HTTPServer, param: str, body: dict) -> None:
    status, answer = server.post(PATH, **body)
    assert status == 400 and answer["error"]["param"] == param, answer
