"""What vLLM's documentation tells a new user to do, with only the model's name changed: curl, and the ``openai`` package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import pytest
from openai import OpenAI
from pydantic import BaseModel

from framework import AsyncEngine
from framework.server.config import ServerConfig

from .scripted import ScriptedEngine
from .servers import HTTPServer, serving

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking | default(true) %}<think>\n{% endif %}{% endif %}"
)
QUESTION: list = [{"role": "user", "content": "9.11 and 9.8, which is greater?"}]
WEATHER = "What's the weather like in San Francisco?"
GET_WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {  # bounded, unlike the documentation's: the tiny model would go on until it is cut
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City and state, e.g., 'San Francisco, CA'", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
            "additionalProperties": False,
        },
    },
}
ARGUMENTS = {"location": "San Francisco, CA", "unit": "fahrenheit"}
CALL = json.dumps({"name": "get_weather", "parameters": ARGUMENTS})
LLAMA = {"enable_auto_tool_choice": True, "tool_call_parser": "llama3_json"}
SQL = """
    root ::= select_statement

    select_statement ::= "SELECT " column " from " table " where " condition

    column ::= "col_1 " | "col_2 "

    table ::= "table_1 " | "table_2 "

    condition ::= column "= " number

    number ::= "1 " | "2 "
"""


@pytest.fixture
def client(server: HTTPServer) -> OpenAI:
    return OpenAI(api_key="EMPTY", base_url=f"{server.url}/v1", max_retries=0)


@contextmanager
def speaking(text: str, tmp_path: Path, **config: Any) -> Iterator[OpenAI]:
    """A client of a server that was given a chat template as a file, and whose model says this, in pieces of three characters."""
    (template := tmp_path / "template.jinja").write_text(TEMPLATE)
    engine = ScriptedEngine([text[i : i + 3] for i in range(0, len(text), 3)])
    with serving(cast(AsyncEngine, engine), ServerConfig(chat_template=str(template), **config)) as server:
        yield OpenAI(api_key="dummy", base_url=f"{server.url}/v1", max_retries=0)


CURL = {
    "/v1/models": "curl http://localhost:8000/v1/models",
    "/v1/completions": """curl http://localhost:8000/v1/completions \\
    -H "Content-Type: application/json" \\
    -d '{
        "model": "tiny",
        "prompt": "San Francisco is a",
        "max_tokens": 7,
        "temperature": 0
    }'""",
    "/v1/chat/completions": """curl http://localhost:8000/v1/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Who won the world series in 2020?"}
        ]
    }'""",
}


def curl(line: str, server: HTTPServer) -> str:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    line = line.replace("http://localhost:8000", server.url).replace("curl", "curl --silent --show-error", 1)
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("path", CURL)
def test_curl(server: HTTPServer, path: str) -> None:
    answer = json.loads(curl(CURL[path], server))
    if path == "/v1/models":
        assert [model["id"] for model in answer["data"]] == ["tiny"]
        return
    (choice,) = answer["choices"]
    assert choice["finish_reason"] in ("stop", "length")
    if path == "/v1/completions":
        assert answer["usage"]["completion_tokens"] == 7 and choice["text"]
    else:
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"]


def test_curl_shows_a_stream_as_it_comes(server: HTTPServer) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 20, "stream": True, "ignore_eos": True}
    text = curl(f"curl -N http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'", server)
    assert text.count("data: {") == 20 and text.endswith("data: [DONE]\n\n")


def test_completions(client: OpenAI) -> None:
    completion = client.completions.create(model="tiny", prompt="San Francisco is a")
    assert completion.choices[0].text and completion.usage is not None and completion.usage.completion_tokens <= 16
    model = client.models.list().data[0].id
    options: dict = {"model": model, "prompt": "A robot may not injure a human being", "echo": False, "n": 2, "logprobs": 3}
    whole = client.completions.create(**options, stream=False, seed=1)
    assert [choice.index for choice in whole.choices] == [0, 1]
    streamed = {0: "", 1: ""}
    for chunk in client.completions.create(**options, stream=True, seed=1):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == {choice.index: choice.text for choice in whole.choices}


def test_a_chat(client: OpenAI) -> None:
    messages: list = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Who won the world series in 2020?"},
        {"role": "assistant", "content": "The Los Angeles Dodgers won the World Series in 2020."},
        {"role": "user", "content": "Where was it played?"},
    ]
    options: dict = {"messages": messages, "model": "tiny", "max_completion_tokens": 30, "temperature": 0}
    content = client.chat.completions.create(**options).choices[0].message.content
    chunks = client.chat.completions.create(**options, stream=True)
    assert content == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"choice": ["positive", "negative"]}, "positive|negative"),
        ({"regex": r"[a-z]{1,12}@[a-z]{1,12}\.com\n"}, r"[a-z]+@[a-z]+\.com"),
        ({"grammar": SQL}, r"SELECT col_[12]  from table_[12]  where col_[12] = [12] "),
    ],
)
def test_structured_outputs(client: OpenAI, constraint: dict[str, Any], pattern: str) -> None:
    completion = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "Classify this sentiment: vLLM is wonderful!"}],
        extra_body={"structured_outputs": constraint, "stop": ["\n"]},
    )
    assert re.fullmatch(pattern, completion.choices[0].message.content or "")


class CarType(StrEnum):
    sedan = "sedan"
    suv = "SUV"
    truck = "Truck"
    coupe = "Coupe"


class CarDescription(BaseModel):
    brand: CarType
    car_type: CarType


def test_json_of_a_pydantic_model(client: OpenAI) -> None:
    messages: list = [{"role": "user", "content": "Generate a JSON with the most iconic car from the 90's"}]
    schema = CarDescription.model_json_schema()
    for field in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "car-description", "schema": schema}}},
        {"extra_body": {"structured_outputs": {"json": schema}}},
    ):
        answer = client.chat.completions.create(model="tiny", messages=messages, **cast(Any, field))
        CarDescription.model_validate_json(answer.choices[0].message.content or "")
    parsed = client.chat.completions.parse(model="tiny", messages=messages, response_format=CarDescription)
    assert isinstance(parsed.choices[0].message.parsed, CarDescription)


def test_a_structural_tag(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Bern"]}}, "required": ["city"]}
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "<function=get_weather>", "schema": schema, "end": "</function>"}],
        "triggers": ["<function="],
    }
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, response_format=cast(Any, tag))
    assert answer.choices[0].message.content


def test_tool_calling(tmp_path: Path) -> None:
    with speaking(CALL, tmp_path, **LLAMA) as client:
        response = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": WEATHER}],
            tools=[GET_WEATHER],
            tool_choice="auto",
        )
    (call,) = response.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == ARGUMENTS and response.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_that_must_be_called(client: OpenAI, choice: Any) -> None:
    messages: list = [{"role": "user", "content": WEATHER}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, tools=[GET_WEATHER], tool_choice=choice, parallel_tool_calls=False, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["unit"] in ("celsius", "fahrenheit")


def test_reasoning(tmp_path: Path) -> None:
    with speaking("9.8 is 9.80.</think>\n\n9.8", tmp_path, reasoning_parser="deepseek_r1") as client:
        model = client.models.list().data[0].id
        message: Any = client.chat.completions.create(model=model, messages=QUESTION).choices[0].message
        assert (message.reasoning, message.content.strip()) == ("9.8 is 9.80.", "9.8")
        reasoning = content = ""
        for chunk in client.chat.completions.create(model=model, messages=QUESTION, stream=True):
            reasoning += getattr(chunk.choices[0].delta, "reasoning", None) or ""
            content += getattr(chunk.choices[0].delta, "content", None) or ""
        assert (reasoning, content) == (message.reasoning, message.content)
    with speaking("9.8", tmp_path, reasoning_parser="qwen3") as client:
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        message = client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=off).choices[0].message
        assert message.content == "9.8" and not getattr(message, "reasoning", None)


def test_reasoning_and_a_tool_call(tmp_path: Path) -> None:
    text = f"<think>\nI need the weather.\n</think>\n\n{CALL}"
    with speaking(text, tmp_path, reasoning_parser="qwen3", **LLAMA) as client:
        asked: list = [{"role": "user", "content": WEATHER}]
        response = client.chat.completions.create(model="tiny", messages=asked, tools=[GET_WEATHER], tool_choice="auto")
    message: Any = response.choices[0].message
    assert message.tool_calls[0].function.name == "get_weather" and message.reasoning.strip() == "I need the weather."
