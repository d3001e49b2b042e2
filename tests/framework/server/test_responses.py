"""/v1/responses, as the openai client sees it."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from framework import AsyncEngine, SamplingParams
from framework.llm import LLM
from framework.server.config import ServerConfig

from .scripted import ScriptedEngine
from .servers import HTTPServer, serving
from .test_tool_calls import CALL, HERMES, MODEL, WEATHER, client

TOOL = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
EVENTS: TypeAdapter = TypeAdapter(ResponseStreamEvent)
LOGPROBS = ["message.output_text.logprobs"]


def ask(api: Any, stream: bool, **fields: Any) -> Any:
    """The response, put together and checked by the client where it was streamed."""
    request = {"model": MODEL, "input": "Weather in Oslo?", **fields}
    if not stream:
        return api.responses.create(**request)
    with api.responses.stream(**request) as events:
        for _ in events:
            pass
        return events.get_final_response()


@pytest.mark.parametrize("stream", [False, True])
def test_the_text_is_that_of_the_offline_interface(server: HTTPServer, offline: LLM, stream: bool) -> None:
    [expected] = offline.chat([{"role": "user", "content": "def f"}], SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    api = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    fields = {"model": server.request("GET", "/v1/models")[1]["data"][0]["id"], "input": "def f", "temperature": 0}
    if stream:
        events = list(api.responses.create(**fields, max_output_tokens=24, stream=True))
        response = events[-1].response
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == response.output_text
    else:
        response = api.responses.create(**fields, max_output_tokens=24)
    assert response.output_text == expected.outputs[0].text
    assert response.usage.input_tokens == len(expected.prompt_token_ids)
    assert response.usage.output_tokens == len(expected.outputs[0].token_ids)
    length = expected.outputs[0].finish_reason == "length"
    assert response.status == ("incomplete" if length else "completed")
    assert (response.incomplete_details is not None) == length


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_offline_interface(server: HTTPServer, offline: LLM, stream: bool) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=2, ignore_eos=True)
    [expected] = offline.chat([{"role": "user", "content": "def f"}], params, use_tqdm=False)
    api = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    fields: dict[str, Any] = {"input": "def f", "temperature": 0, "max_output_tokens": 24, "extra_body": {"ignore_eos": True}}
    fields |= {"model": "tiny", "include": LOGPROBS, "top_logprobs": 2}
    if stream:
        events = list(api.responses.create(**fields, stream=True))
        for event in events:
            EVENTS.validate_python(event.to_dict())
        response = events[-1].response
        [done] = [event for event in events if event.type == "response.output_text.done"]
        deltas = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
        [part] = [event for event in events if event.type == "response.content_part.added"]
        assert part.part.logprobs == []
    else:
        response = api.responses.create(**fields)
    Response.model_validate(response.to_dict())
    found = response.output[0].content[0].logprobs
    if stream:
        assert [entry.to_dict() for entry in found] == [entry.to_dict() for entry in deltas]
        assert [entry.to_dict() for entry in found] == [entry.to_dict() for entry in done.logprobs]
    completion = expected.outputs[0]
    assert response.top_logprobs == 2 and len(found) == len(completion.token_ids) == 24
    for entry, token, known in zip(found, completion.token_ids, completion.logprobs):
        assert (entry.token, bytes(entry.bytes).decode()) == (known[token].decoded_token,) * 2
        assert entry.logprob == pytest.approx(known[token].logprob, abs=1e-4)
        best = sorted((logprob for logprob in known.values() if logprob.rank <= 2), key=lambda logprob: logprob.rank)
        assert [top.token for top in entry.top_logprobs] == [logprob.decoded_token for logprob in best]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx([logprob.logprob for logprob in best], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_text_alone(stream: bool) -> None:
    tokens = ["<think>", "\nHm", ".\n", "</think>", "\n\n", "I ", "look.", *CALL]
    with client(ScriptedEngine(tokens), reasoning_parser="qwen3", **HERMES) as api:
        response = ask(api, stream, tools=[TOOL], include=LOGPROBS)
        assert ask(api, stream, tools=[TOOL]).output[1].content[0].logprobs == []
    reasoning, message, call = response.output
    assert (reasoning.type, message.type, call.type) == ("reasoning", "message", "function_call")
    found = message.content[0].logprobs
    assert [(entry.token, entry.logprob) for entry in found] == [("\n\n", -4), ("I ", -5), ("look.", -6)]
    assert all(entry.top_logprobs == [] for entry in found)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_text_and_a_call(stream: bool) -> None:
    tokens = ["<think>", "\nHm", ".\n", "</think>", "\n\n", "I look.", *CALL]
    engine = ScriptedEngine(tokens)
    with client(engine, reasoning_parser="qwen3", **HERMES) as api:
        response = ask(api, stream, tools=[TOOL], instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    Response.model_validate(response.to_dict())  # which the client does not do
    reasoning, message, call = response.output
    assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "Hm.")
    assert (message.role, response.output_text) == ("assistant", "I look.")
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    assert (response.status, response.error, response.instructions, response.metadata) == (
        "completed",
        None,
        "Be brief.",
        {"a": "b"},
    )
    assert (response.usage.output_tokens, response.usage.output_tokens_details.reasoning_tokens) == (len(tokens), 4)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert (response.temperature, engine.params[0].temperature) == (0.5, 0.5)
    assert engine.prompts == ["TOOL get_weather\nsystem: Be brief.\nuser: Weather in Oslo?\nassistant: "]


def test_events_are_as_openai_has_them() -> None:
    with client(ScriptedEngine(["<think>", "a", "</think>", "b", *CALL]), reasoning_parser="deepseek_r1", **HERMES) as api:
        events = list(api.responses.create(model=MODEL, input="x", tools=[TOOL], stream=True))
    for event in events:
        EVENTS.validate_python(event.to_dict())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:2] == ["response.created", "response.in_progress"] and types[-1] == "response.completed"
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message", "function_call"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_was_cut_off(stream: bool) -> None:
    with client(ScriptedEngine(["a", "b", "c"])) as api:
        request = {"model": MODEL, "input": "x", "max_output_tokens": 2}
        if stream:
            event = list(api.responses.create(**request, stream=True))[-1]
            assert event.type == "response.incomplete"
            response = event.response
        else:
            response = api.responses.create(**request)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[0].status) == ("ab", "incomplete")


def test_a_conversation_goes_on_with_what_was_answered() -> None:
    engine = ScriptedEngine(CALL)
    with client(engine, **HERMES) as api:
        conversation: list[Any] = [{"role": "user", "content": "Weather?"}]
        response = ask(api, False, input=conversation, tools=[TOOL])
        conversation += [item.to_dict() for item in response.output]
        conversation.append({"type": "function_call_output", "call_id": response.output[0].call_id, "output": "7 C"})
        ask(api, False, input=conversation, tools=[TOOL])
    assert engine.prompts[1].splitlines()[2:4] == ["assistant:  CALL get_weather Oslo", "tool: 7 C"]


def test_nothing_is_stored() -> None:
    with client(ScriptedEngine(["hi"])) as api:
        response = ask(api, False, store=True)
        assert response.store is False
        for call in (api.responses.retrieve, api.responses.cancel, api.responses.delete, api.responses.input_items.list):
            with pytest.raises(NotFoundError, match="not found"):
                call(response.id)
        with pytest.raises(NotFoundError, match="not found"):
            ask(api, False, previous_response_id=response.id)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": []}, "messages"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "messages"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
        ({"text": {"format": "json"}}, "text"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"metadata": {"a": 3}}, "metadata"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"max_output_tokens": 10**6}, "prompt"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], param: str) -> None:
    with client(ScriptedEngine(["hi"]), **HERMES) as api, pytest.raises(BadRequestError) as refusal:
        ask(api, False, **fields)
    assert refusal.value.param == param


def test_what_json_cannot_hold_is_not_repeated() -> None:
    with serving(cast(AsyncEngine, ScriptedEngine(["hi"])), ServerConfig()) as server:
        for text in (b'{"reasoning": {"effort": NaN}, "input": "x"}', b'{"metadata": {"a": "\\ud800"}, "input": "x"}'):
            status, answer = server.request("POST", "/v1/responses", text)
            assert (status, answer["error"]["type"]) == (400, "BadRequestError")
