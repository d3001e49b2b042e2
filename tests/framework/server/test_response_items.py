"""Output items and their events; input items."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from framework.server.errors import APIError
from framework.server.parsing import Content, Delta, Reasoning, ToolCall
from framework.server.response_input import messages
from framework.server.response_items import ResponseItems

EVENTS: TypeAdapter = TypeAdapter(ResponseStreamEvent)
BEGUN, MORE = ToolCall(0, "id", "f", ""), ToolCall(0, None, None, "{}")
RUNS: list[list[Delta]] = [[Content("c")], [Reasoning("r")], [BEGUN], [BEGUN, MORE, MORE]]
DELTAS = st.lists(st.sampled_from(RUNS)).map(lambda runs: [delta for run in runs for delta in run])


def items() -> ResponseItems:
    numbers = itertools.count()
    return ResponseItems(lambda prefix: f"{prefix}_{next(numbers)}")


def test_the_events_of_a_message_with_a_call() -> None:
    found = items()
    events = [*found.add([Reasoning("a"), Reasoning("b"), Content("c")]), *found.add([ToolCall(0, "x", "f", '{"a": 1}')])]
    events += found.close()
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
    ]
    for number, event in enumerate(events):
        EVENTS.validate_python({**event, "sequence_number": number})
    assert [event["output_index"] for event in events] == [0] * 7 + [1] * 6 + [2] * 4
    assert found.output == [
        {
            "id": "rs_0",
            "type": "reasoning",
            "status": "completed",
            "content": [{"type": "reasoning_text", "text": "ab"}],
            "summary": [],
        },
        {
            "id": "msg_1",
            "type": "message",
            "status": "completed",
            "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
            "role": "assistant",
        },
        {"id": "fc_2", "type": "function_call", "status": "completed", "call_id": "x", "name": "f", "arguments": '{"a": 1}'},
    ]


def test_an_item_that_was_cut_off_is_incomplete() -> None:
    found = items()
    list(found.add([Reasoning("a"), Content("b")]))
    assert list(found.close("incomplete")) and not list(found.close())
    assert [item["status"] for item in found.output] == ["completed", "incomplete"]


@given(DELTAS)
def test_deltas_of_events_add_up_to_the_items(deltas: list[Delta]) -> None:
    found, texts = items(), {}
    # As they would be sent: what happens to an item later must not change them.
    events = [json.loads(json.dumps(event)) for event in itertools.chain(found.add(deltas), found.close())]
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["item_id"]] = texts.get(event["item_id"], "") + event["delta"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == found.output
    for item in found.output:
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert texts.get(item["id"], "") == whole


def test_input_items_become_messages() -> None:
    found = messages(
        "Be brief.",
        [
            {"role": "developer", "content": "In English."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc"},
            {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "7 C"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Cold."}], "id": "msg"},
            {"role": "developer", "content": "Go on."},
        ],
    )
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert found == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "In English."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "reasoning_content": "Ask.",
            "tool_calls": [{"id": "c", **call}, {"id": "d", **call, "function": {"name": "g", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "7 C"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Cold."}]},
        {"role": "system", "content": "Go on."},
    ]
    assert messages(None, "hi") == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"type": "item_reference", "id": "x"},
        {"role": "user"},
        {"role": 3, "content": "x"},
        {"role": "user", "content": 3},
        {"role": "user", "content": ["x"]},
        {"type": "reasoning", "content": [3]},
        {"type": "function_call_output", "call_id": "c", "output": None},
        {"type": "computer_call"},
    ],
)
def test_input_items_that_stand_for_no_text(item: dict) -> None:
    with pytest.raises(APIError) as refusal:
        messages(None, [item])
    assert (refusal.value.status, refusal.value.param) == (400, "input")
