"""The ``openai`` package cannot tell the difference."""

from __future__ import annotations

import openai
import pytest

from .servers import HTTPServer

MESSAGES: list = [{"role": "user", "content": "add two numbers"}]


@pytest.fixture
def client(server: HTTPServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "tiny" == client.models.retrieve("tiny").id


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=5, logprobs=2, seed=1)
    assert len(answer.choices) == 4 and answer.usage is not None and answer.usage.completion_tokens <= 20
    assert all(choice.logprobs is not None and choice.logprobs.tokens for choice in answer.choices)
    chunks = list(client.completions.create(model="tiny", prompt="a", max_tokens=5, stream=True, temperature=0))
    text = client.completions.create(model="tiny", prompt="a", max_tokens=5, temperature=0).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=5, logprobs=True, top_logprobs=1)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.message.tool_calls is None
    assert choice.logprobs is not None and choice.logprobs.content
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=5,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "top_k": 5},
    )
    *chunks, last = stream
    assert last.usage is not None and last.usage.completion_tokens == 5 and not last.choices
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_the_helper_that_puts_streams_together(client: openai.OpenAI) -> None:
    options: dict = {"model": "tiny", "messages": MESSAGES, "max_tokens": 64, "temperature": 0, "stop": ["\n"]}
    with client.chat.completions.stream(**options) as stream:
        final = stream.until_done().get_final_completion()
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_errors_are_those_that_it_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-5", prompt="a")
    assert missing.value.param == "model" and missing.value.type == "NotFoundError"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        client.completions.create(model="tiny", prompt="a " * 5000)
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        list(client.completions.create(model="tiny", prompt="a", temperature=5, stream=True))
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.InternalServerError, match="does not support embeddings: it generates text") as refused:
        client.embeddings.create(model="tiny", input="a")
    assert refused.value.status_code == 501
