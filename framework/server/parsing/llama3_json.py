"""Llama 3.1, 3.2 and 3.3 with JSON-based tool calling."""

from __future__ import annotations

from .json_calls import json_calls
from .source import Source, Steps

PYTHON_TAG = "<|python_tag|>"


def llama3_json(source: Source) -> Steps[None]:
    """A message is text, or it is calls from its first character on:

        <|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "get_time", "parameters": {}}

    The tag and the space between calls may be missing, or a line break stand between them. A message that begins with an object
    which is no call is text: an answer in JSON, say."""
    start = yield from source.space_end(0)
    if (yield from source.starts(PYTHON_TAG, start)):
        start = yield from source.space_end(start + len(PYTHON_TAG))
    yield from json_calls(source, start, ";")
