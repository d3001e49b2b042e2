"""Tool calls and reasoning over HTTP, as the openai client sees them. The tokens are scripted, the rest is the server's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from openai import BadRequestError, OpenAI

from framework import AsyncEngine
from framework.server.config import ServerConfig

from .scripted import ScriptedEngine
from .servers import serving

TEMPLATE = (
    "{% for tool in tools or [] %}TOOL {{ tool.function.name }}{{ '\n' }}{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %} CALL {{ call.function.name }} {{ call.function.arguments.city }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if thinking %}<think>{{ '\n' }}{% endif %}{% endif %}"
)
MODEL = "tiny"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
USER = {"role": "user", "content": "Weather in Oslo?"}
CALL = ["<tool", "_call>", "\n", '{"name": ', '"get_weather", "argum', 'ents": {"city": ', '"Oslo"}}', "\n</tool_call>"]
HERMES = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}


@contextmanager
def client(engine: ScriptedEngine, **config: Any) -> Iterator[Any]:
    """Any: messages and tools of tests are plain dicts."""
    with serving(cast(AsyncEngine, engine), ServerConfig(chat_template=TEMPLATE, **config)) as server:
        yield OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(api: Any, stream: bool, **fields: Any) -> tuple[Any, list[Any]]:
    """The answer, and its chunks if it was streamed. The client puts the chunks together and checks them."""
    request = {"model": MODEL, "messages": [USER], **fields}
    if not stream:
        return api.chat.completions.create(**request), []
    with api.chat.completions.stream(**request, stream_options={"include_usage": True}) as events:
        chunks = [event.chunk for event in events if event.type == "chunk"]
        return events.get_final_completion(), chunks


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(stream: bool) -> None:
    engine = ScriptedEngine(["Let ", "me see.", "\n", *CALL])
    with client(engine, **HERMES) as api:
        answer, chunks = ask(api, stream, tools=[WEATHER])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [(c.type, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
        ("function", "get_weather", {"city": "Oslo"})
    ]
    assert choice.message.tool_calls[0].id.startswith("chatcmpl-tool-")
    if not stream:
        assert choice.message.tool_calls[0].to_dict().keys() == {"id", "type", "function"}
    assert answer.usage.completion_tokens == 11 and answer.usage.completion_tokens_details is None
    assert engine.prompts == ["TOOL get_weather\nuser: Weather in Oslo?\nassistant: "]
    if stream:
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert [delta.content for delta in deltas if delta.content] == ["Let", " me see."]
        assert [bool(delta.tool_calls) for delta in deltas].count(True) == 1
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_completions_of_one_prompt_are_parsed_apart(stream: bool) -> None:
    with client(ScriptedEngine(CALL, ["No."], [*CALL, *CALL]), **HERMES) as api:
        answer, _ = ask(api, stream, tools=[WEATHER], n=3)
    assert [choice.finish_reason for choice in answer.choices] == ["tool_calls", "stop", "tool_calls"]
    assert [len(choice.message.tool_calls or []) for choice in answer.choices] == [1, 0, 2]
    assert [choice.message.content or None for choice in answer.choices] == [None, "No.", None]
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [["<tool_call>", "oops", "</tool_call>"], CALL[:-2]])
def test_what_is_no_call_stays_text(stream: bool, tokens: list[str]) -> None:
    with client(ScriptedEngine(tokens), **HERMES) as api:
        answer, _ = ask(api, stream, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == "".join(tokens)
    assert not answer.choices[0].message.tool_calls


def test_a_call_that_is_cut_off_is_text_and_the_reason_stays_length() -> None:
    with client(ScriptedEngine(CALL), **HERMES) as api:
        answer, _ = ask(api, False, tools=[WEATHER], max_completion_tokens=5)
        request = {"model": MODEL, "messages": [USER], "tools": [WEATHER], "max_tokens": 5}
        chunks = list(api.chat.completions.create(**request, stream=True))
    assert answer.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "".join(CALL[:5])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(CALL[:5])


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cut_off_behind_a_call_has_the_reason_length(stream: bool) -> None:
    with client(ScriptedEngine([*CALL, "And", " then"]), **HERMES) as api:
        request = {"model": MODEL, "messages": [USER], "tools": [WEATHER], "max_tokens": len(CALL) + 1}
        answer = api.chat.completions.create(**request, stream=stream)
        choice = list(answer)[-1].choices[0] if stream else answer.choices[0]
    assert choice.finish_reason == "length"


def test_only_the_first_call_without_parallel_calls() -> None:
    with client(ScriptedEngine([*CALL, *CALL]), **HERMES) as api:
        answer, _ = ask(api, False, tools=[WEATHER], parallel_tool_calls=False)
        assert len(answer.choices[0].message.tool_calls) == 1


def test_with_tool_choice_none_calls_are_text() -> None:
    with client(ScriptedEngine(CALL), **HERMES) as api:
        for fields in ({"tool_choice": "none", "tools": [WEATHER]}, {}):
            answer, _ = ask(api, False, **fields)
            assert answer.choices[0].message.content == "".join(CALL)
            assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "none"}}]}, "tools"),
    ],
)
def test_tools_that_cannot_be(fields: dict[str, Any], param: str) -> None:
    with client(ScriptedEngine(CALL), **HERMES) as api, pytest.raises(BadRequestError) as refusal:
        ask(api, False, **fields)
    assert refusal.value.param == param


def test_the_model_calls_nothing_by_itself_unless_the_server_was_told() -> None:
    with client(ScriptedEngine(CALL)) as api:
        with pytest.raises(BadRequestError, match="--enable-auto-tool-choice and --tool-call-parser"):
            ask(api, False, tools=[WEATHER])
        answer, _ = ask(api, False, tools=[WEATHER], tool_choice="none")
        assert answer.choices[0].message.content == "".join(CALL)


def test_earlier_calls_reach_the_template_as_objects() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    cut = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Os'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, cut]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "7 C"}]},
    ]
    engine = ScriptedEngine(["Cold."])
    with client(engine) as api:
        ask(api, False, messages=messages)
    assert engine.prompts[0].splitlines()[1:3] == ["assistant:  CALL get_weather Oslo CALL get_weather ", "tool: 7 C"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reasoning_parser, thinking", [("qwen3", False), ("qwen3", True), ("deepseek_r1", True)])
def test_reasoning(stream: bool, reasoning_parser: str, thinking: bool) -> None:
    tokens = [*([] if thinking else ["<think>", "\n"]), "Oslo ", "is cold", ".\n", "</think>", "\n\n", "Cold", ".", *CALL]
    engine = ScriptedEngine(tokens)
    with client(engine, reasoning_parser=reasoning_parser, **HERMES) as api:
        extra = {"chat_template_kwargs": {"thinking": thinking}}
        answer, chunks = ask(api, stream, tools=[WEATHER], extra_body=extra)
    message = answer.choices[0].message
    assert engine.prompts[0].endswith("<think>\n") is thinking
    assert (message.reasoning, message.content) == ("Oslo is cold.", "Cold.")
    assert message.reasoning_content == message.reasoning
    assert message.tool_calls[0].function.name == "get_weather"
    assert answer.usage.completion_tokens_details.reasoning_tokens == tokens.index("</think>") + 1
    if stream:
        texts = [getattr(chunk.choices[0].delta, "reasoning", None) for chunk in chunks if chunk.choices]
        assert [text for text in texts if text] == ["Oslo", " is cold", "."]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_that_the_request_does_not_want(stream: bool) -> None:
    with client(ScriptedEngine(["<think>", "a", "</think>", "b"]), reasoning_parser="qwen3") as api:
        answer, chunks = ask(api, stream, extra_body={"include_reasoning": False})
    assert answer.choices[0].message.content == "b"
    assert not hasattr(answer.choices[0].message, "reasoning")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    assert all(not hasattr(chunk.choices[0].delta, "reasoning") for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_has_its_logprobs_though_text_is_held_back(engine: AsyncEngine, stream: bool) -> None:
    with serving(engine, ServerConfig(reasoning_parser="qwen3", **HERMES)) as server:
        api = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        fields: Any = {"model": MODEL, "messages": [USER], "tools": [WEATHER], "max_tokens": 60, "temperature": 0, "logprobs": True}
        whole = api.chat.completions.create(**fields)
        found: Any = list(api.chat.completions.create(**fields, stream=True)) if stream else [whole]
    tokens = [token for chunk in found for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content]
    assert len(tokens) == whole.usage.completion_tokens
    assert "".join(token.token for token in tokens).strip() == whole.choices[0].message.content.strip()


def test_special_tokens_that_mark_calls_are_not_skipped() -> None:
    engine = ScriptedEngine(["hi"])
    with client(engine, **HERMES) as api:
        ask(api, False, tools=[WEATHER])
    assert engine.params[0].skip_special_tokens
    tokenizer = engine.inputs.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    with client(engine, **HERMES) as api:
        ask(api, False, tools=[WEATHER])
        ask(api, False)
    assert [params.skip_special_tokens for params in engine.params[1:]] == [False, True]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% if %}",
        "{{ nobody.knows }}",
        "{{ 'a' * 10 ** 18 }}",
    ],
)
def test_a_template_that_fails_is_the_requests_fault(template: str) -> None:
    with client(ScriptedEngine(["hi"]), trust_request_chat_template=True) as api:
        with pytest.raises(BadRequestError):
            ask(api, False, extra_body={"chat_template": template})
        assert ask(api, False)[0].choices[0].message.content == "hi"


@pytest.mark.parametrize("name", ["messages", "conversation", "tokenize", "chat_template", "tools"])
def test_template_arguments_cannot_take_the_place_of_the_servers(name: str) -> None:
    with client(ScriptedEngine(["hi"])) as api, pytest.raises(BadRequestError, match=name) as refusal:
        ask(api, False, extra_body={"chat_template_kwargs": {name: None}})
    assert refusal.value.param == "chat_template_kwargs"


def test_the_effort_reaches_the_template_unless_its_own_argument_says_otherwise() -> None:
    engine = ScriptedEngine(["hi"])
    with serving(cast(AsyncEngine, engine), ServerConfig(chat_template="{{ reasoning_effort }}")) as server:
        for more in ({}, {"chat_template_kwargs": {"reasoning_effort": "low"}}):
            assert server.post("/v1/chat/completions", messages=[USER], reasoning_effort="high", **more)[0] == 200
        assert server.post("/v1/responses", input="a", reasoning={"effort": "medium"})[0] == 200
    assert engine.prompts == ["high", "low", "medium"]


def test_a_template_of_a_request_is_refused_unless_trusted() -> None:
    with client(ScriptedEngine(["hi"])) as api, pytest.raises(BadRequestError, match="chat template"):
        ask(api, False, extra_body={"chat_template": "x"})


def test_parsers_are_checked_before_anything_starts() -> None:
    for config in ({"tool_call_parser": "mine"}, {"reasoning_parser": "mine"}, {"enable_auto_tool_choice": True}):
        with pytest.raises(ValueError, match="parser"):
            ServerConfig(**config).validate()  # type: ignore[arg-type]
