"""Calls between tags, anywhere in a text."""

from __future__ import annotations

from collections.abc import Callable

from .deltas import Call, Content
from .source import Source, Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def tagged_calls(source: Source, opening: tuple[str, ...], call_at: Callable[[int], Steps[tuple[Call | None, int]]]) -> Steps[None]:
    """Yields text, and the calls in it; what an opening tag begins that is no call is text.

    opening  the tags that a call begins with
    call_at  reads from such a tag on: the call, None if it is none; and where it ends, before a closing tag, or went wrong"""
    while (at := (yield from source.stream_until(opening, Content))) >= 0:
        call, end = yield from call_at(at)
        if call is None:
            yield Content(source.take(end))
            continue
        yield call
        source.take(end)
        yield from source.skip_space()
        yield from source.skip(CLOSE)
