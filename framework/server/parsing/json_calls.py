"""Tool calls that are JSON objects: alone, and in a row."""

from __future__ import annotations

import json
from typing import Any

from ...sampling_params import is_unicode
from .deltas import Call, Content
from .source import Source, Steps


def load_json(text: str) -> Any:
    """Raises ValueError for what is no JSON, NaN included. Line breaks inside strings, which models write, are let pass."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_json(value: Any) -> str:
    """Raises ValueError for numbers that JSON has no form for."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if is_unicode(text) else json.dumps(value)


def json_call(text: str) -> Call | None:
    """The call that a JSON object stands for: ``name``, and as ``arguments`` (or ``parameters``, as Llama says) an object or the
    JSON text of one. None where it is no call."""
    try:
        fields = load_json(text)
        if not isinstance(fields, dict):
            return None
        name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters"))
        if isinstance(arguments, str):
            arguments = load_json(arguments)
        if not (isinstance(name, str) and name and is_unicode(name) and isinstance(arguments, dict)):
            return None
        return Call(name, dump_json(arguments))
    except (ValueError, RecursionError):
        return None


def json_calls(source: Source, start: int, separator: str, closing: str = "") -> Steps[None]:
    """Yields calls in a row, of which the first begins at ``start``; the rest is content, with what is before ``start`` if not even
    the first is a call."""
    while True:
        end = yield from source.object_end(start)
        call = json_call(source.text[start:end])
        if call is None:
            break
        yield call
        start = 0
        source.take(end)
        yield from source.skip_space()
        if not (yield from source.skip(separator)) and closing:
            yield from source.skip(closing)
            break
    yield from source.stream_rest(Content)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
