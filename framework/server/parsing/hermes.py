"""Hermes 2 Pro and later, Qwen 2.5, Qwen 3."""

from __future__ import annotations

from .deltas import Content
from .json_calls import json_call
from .source import Source, Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def hermes(source: Source) -> Steps[None]:
    """Text, and in it calls of the form

        <tool_call>
        {"name": "get_weather", "arguments": {"city": "Oslo"}}
        </tool_call>

    The last closing tag may be missing. The end of a call is the end of its object, so that strings in it may hold tags."""
    while (at := (yield from source.stream_until((OPEN,), Content))) >= 0:
        start = yield from source.space_end(at + len(OPEN))
        end = yield from source.object_end(start)
        call = json_call(source.text[start:end])
        if call is None:
            yield Content(source.take(end))
            continue
        yield call
        source.take(end)
        yield from source.skip_space()
        yield from source.skip(CLOSE)
