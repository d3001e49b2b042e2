"""Calls that requests ask for: a grammar makes even the tiny model write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import validate
from openai import OpenAI

from .servers import HTTPServer

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Oslo", "Bern"]}},
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def api(server: HTTPServer) -> Iterator[Any]:
    yield OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def request(choice: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Weather?"}]
    return {"model": "tiny", "messages": messages, "tools": [WEATHER, NOW], "tool_choice": choice, "max_tokens": 300, **fields}


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call(api: Any, seed: int) -> None:
    answer = api.chat.completions.create(**request("required", seed=seed, parallel_tool_calls=False)).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    [call] = answer.message.tool_calls
    schema = PARAMETERS if call.function.name == "get_weather" else NOW["function"]["parameters"]
    validate(json.loads(call.function.arguments), schema)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_streamed_calls_are_those_of_the_whole_answer(api: Any, choice: Any) -> None:
    fields = request(choice, temperature=0, parallel_tool_calls=False)
    whole = api.chat.completions.create(**fields).choices[0]
    with api.chat.completions.stream(**fields) as stream:
        streamed = stream.until_done().get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason == ("stop" if choice == NAMED else "tool_calls")
    [call], [expected] = streamed.message.tool_calls, whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == (expected.function.name, expected.function.arguments)
    if choice == NAMED:
        assert call.function.name == "get_weather"
        validate(json.loads(call.function.arguments), PARAMETERS)


def test_the_form_of_an_answer_gives_way_to_a_call(api: Any) -> None:
    answer = api.chat.completions.create(**request(NAMED, response_format={"type": "json_object"})).choices[0]
    validate(json.loads(answer.message.tool_calls[0].function.arguments), PARAMETERS)


def test_a_named_call_of_a_response(api: Any) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    choice = {"type": "function", "name": "get_weather"}
    response = api.responses.create(model="tiny", input="Weather?", tools=[tool], tool_choice=choice, max_output_tokens=300)
    [call] = response.output
    assert (response.status, call.type, call.name) == ("completed", "function_call", "get_weather")
    validate(json.loads(call.arguments), PARAMETERS)


def test_text_in_a_format(api: Any) -> None:
    text = {"format": {"type": "json_schema", "name": "weather", "schema": PARAMETERS}}
    response = api.responses.create(model="tiny", input="Weather?", text=text, max_output_tokens=300)
    validate(json.loads(response.output_text), PARAMETERS)
