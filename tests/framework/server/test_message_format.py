"""Tool choices: what they are read as, and the schemas that they force."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from framework.server.errors import APIError
from framework.server.message_format import message_format

from .parsing.messages import parse

POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "additionalProperties": False}
DRAW = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Point"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"Point": POINT},
}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def valid(schema: Any, instance: Any) -> bool:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid(instance)


def test_a_required_call_is_one_of_the_tools() -> None:
    found = message_format([tool("draw", DRAW), tool("now")], "required", reasoning_parser="qwen3")
    draw, now = {"name": "draw", "parameters": {"at": {"x": 1}}}, {"name": "now", "parameters": {}}
    assert all(valid(found.schema, calls) for calls in ([draw], [now], [draw, now, draw]))
    for calls in (
        [],
        draw,
        [{"name": "draw", "parameters": {}}],
        [{"name": "now"}],
        [{**now, "more": 1}],
        [{"name": "stop", "parameters": {}}],
    ):
        assert not valid(found.schema, calls)
    message = parse(found.parser("<think>"), json.dumps([draw, now]))  # a grammar leaves no room for reasoning
    assert [(name, json.loads(arguments)) for name, arguments in message.calls] == [("draw", {"at": {"x": 1}}), ("now", {})]
    only = message_format([tool("now")], "required", parallel=False)
    assert valid(only.schema, [now]) and not valid(only.schema, [now, now])


def test_a_named_call_is_its_arguments() -> None:
    found = message_format([tool("draw", DRAW), tool("now")], {"type": "function", "function": {"name": "draw"}})
    assert found.schema == DRAW and found.is_named
    assert parse(found.parser(""), ['{"at": ', '{"x": 1}}']).calls == [("draw", '{"at": {"x": 1}}')]
    empty = message_format([tool("now")], {"type": "function", "function": {"name": "now"}})
    assert empty.schema == {"type": "object", "properties": {}}


def test_definitions_of_two_tools_that_differ() -> None:
    other = {**DRAW, "$defs": {"Point": {"type": "string"}}}
    message_format([tool("a", DRAW), tool("b", DRAW)], "required")
    with pytest.raises(APIError, match="two tools define \\$defs/Point") as refusal:
        message_format([tool("a", DRAW), tool("b", other)], "required")
    assert refusal.value.param == "tools"


@pytest.mark.parametrize("definitions", [3, [], {"Point": 3}])
def test_definitions_that_are_none(definitions: Any) -> None:
    """Whoever compiles the schema refuses it; here nothing breaks."""
    try:
        message_format([tool("a", {**DRAW, "$defs": definitions})], "required")
    except APIError as refusal:
        assert refusal.param == "tools"


def test_free_choices() -> None:
    plain = message_format([], None)
    assert plain.is_plain and plain.schema is None and not plain.tags
    auto = message_format([tool("now")], None, auto_parser="llama3_json", reasoning_parser="deepseek_r1")
    assert auto.tags == {"<|python_tag|>", "<think>", "</think>"} and auto.schema is None
    constrained = message_format([tool("now")], "none", auto_parser="hermes", reasoning_parser="qwen3", is_constrained=True)
    assert constrained.is_plain and not constrained.tags


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "function", "auto", "required", "now", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "name", "parameters", "$defs", "definitions", "properties"]), inner)
    ),
    max_leaves=12,
)


FUNCTIONS = st.fixed_dictionaries({"type": st.just("function"), "function": JSON})


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a machine that has other things to do
@given(
    tools=st.lists(FUNCTIONS | st.just(tool("now")), max_size=3),
    choice=st.sampled_from([None, "none", "auto", "required"]) | FUNCTIONS,
)
def test_whatever_a_request_asks_for_is_a_format_or_a_refusal(tools: list[dict[str, Any]], choice: Any) -> None:
    try:
        found = message_format(tools, choice, auto_parser="qwen3_coder")
    except APIError as refusal:
        assert refusal.status == 400 and refusal.param in ("tools", "tool_choice")
    else:
        parse(found.parser(""), ["<function=now><parameter=name>1</parameter></function>"])
