"""Hermes 2 Pro and later, Qwen 2.5, Qwen 3."""

from __future__ import annotations

from .deltas import Call
from .json_calls import json_call
from .source import Source, Steps
from .tagged_calls import OPEN, tagged_calls


def hermes(source: Source) -> Steps[None]:
    """Text, and in it calls of the form

        <tool_call>
        {"name": "get_weather", "arguments": {"city": "Oslo"}}
        </tool_call>

    The last closing tag may be missing. The end of a call is the end of its object, so that strings in it may hold tags."""

    def call_at(at: int) -> Steps[tuple[Call | None, int]]:
        start = yield from source.space_end(at + len(OPEN))
        end = yield from source.object_end(start)
        return json_call(source.text[start:end]), end

    yield from tagged_calls(source, (OPEN,), call_at)
