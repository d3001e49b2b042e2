"""Properties of every parser, whatever the text and however it is cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.server.parsing import TOOL_FORMATS, MessageParser
from framework.server.parsing.forced import named, required

from .messages import Message, counted, parse, tool_parser

PIECES = (
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<|python_tag|>",
    "<function=f>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    '{"name": "f", "arguments": ',
    '{"name": "g", "parameters": ',
    '{"a": "}\\""}',
    "{}",
    "}",
    "]",
    "[",
    ",",
    ";",
    '"',
    "\\",
    "\n",
    " ",
    "word",
    "1",
    "é",
    "<",
    ">",
    "\u2028",
    "null",
)
PARSERS = {
    **{
        name: (lambda opened, name=name: tool_parser(name, {"f": {"properties": {"a": {"type": "array"}}}}, opened=opened))
        for name in TOOL_FORMATS
    },
    "required": lambda opened: MessageParser(required, opened, counted()),
    "named": lambda opened: MessageParser(lambda source: named(source, "f"), opened, counted()),
    "none": lambda opened: MessageParser(None, opened, counted()),
}
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)
CALLS = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"n": %d}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=n>\n%d\n</parameter>\n</function>\n</tool_call>",
}


def cut(text: str, draw: st.DrawFn) -> Iterator[str]:
    ends = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    for start, end in zip([0, *ends], [*ends, len(text)]):
        yield text[start:end]


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=TEXTS, opened=st.sampled_from([None, False, True]))
def test_how_a_text_is_cut_changes_nothing(name: str, data: st.DataObject, text: str, opened: bool | None) -> None:
    whole = parse(PARSERS[name](opened), [text])
    assert parse(PARSERS[name](opened), cut(text, data.draw)) == whole
    assert parse(PARSERS[name](opened), text) == whole


@pytest.mark.parametrize("name", [*TOOL_FORMATS, "required", "none"])
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_text_without_calls_is_content_unchanged(name: str, text: str) -> None:
    found = parse(PARSERS[name](None), [text])
    assert found.calls or found == Message(text)


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.integers(0, 99) | st.text('ab {}"\\\n', min_size=1), max_size=8))
def test_every_call_is_found_and_everything_else_is_content(name: str, parts: list[int | str]) -> None:
    text = "".join(CALLS[name] % part if isinstance(part, int) else part for part in parts)
    found = parse(tool_parser(name, {"f": {"properties": {"n": {"type": "integer"}}}}), [text])
    assert found.calls == [("f", f'{{"n": {part}}}') for part in parts if isinstance(part, int)]
    assert "".join(found.content.split()) == "".join("".join(part for part in parts if isinstance(part, str)).split())
