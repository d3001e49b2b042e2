"""Calls that the request asked for, so that the model's grammar allows nothing else."""

from __future__ import annotations

from .deltas import Call
from .json_calls import json_calls
from .source import Source, Steps


def required(source: Source) -> Steps[None]:
    """At least one call, of tools that the model chose: ``[{"name": ..., "parameters": {...}}, ...]``."""
    start = yield from source.space_end(0)
    if (yield from source.starts("[", start)):
        start = yield from source.space_end(start + 1)
    yield from json_calls(source, start, ",", closing="]")


def named(source: Source, name: str) -> Steps[None]:
    """One call of the tool that the request named: the text is its arguments, and streams as they come."""
    yield Call(name, "")
    yield from source.stream_rest(lambda text: Call(None, text))
