"""Reasoning between think tags: DeepSeek-R1 and its distilled models, Qwen 3."""

from __future__ import annotations

from .deltas import Reasoning
from .source import Source, Steps

OPEN, CLOSE = "<think>", "</think>"


def think(source: Source, opened: bool) -> Steps[bool]:
    """What the model thought, up to the closing tag and no further; returns whether there was such a thing:

        <think>
        The user wants ...
        </think>

    ``opened``: the prompt ended with the opening tag, or the model is known to leave it away. Otherwise a text that does not
    begin with it holds no reasoning. Reasoning that never ends is all there is. White space next to the tags is theirs."""
    start = yield from source.space_end(0)
    if (yield from source.starts(OPEN, start)):
        start += len(OPEN)
    elif not opened:
        return False
    source.take(start)
    yield from source.skip_space()
    at = yield from source.stream_until((CLOSE,), Reasoning)
    if at >= 0:
        source.take(at + len(CLOSE))
    return True


def is_open(prompt: str, implied: bool) -> bool:
    """Whether a completion of this prompt begins inside reasoning. ``implied``: unless the prompt says otherwise."""
    opened, closed = prompt.rfind(OPEN), prompt.rfind(CLOSE)
    return opened > closed or (implied and not prompt.rstrip().endswith(CLOSE))
