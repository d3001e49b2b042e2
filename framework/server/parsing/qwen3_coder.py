"""Qwen3-Coder and Qwen 3.5 and later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...sampling_params import is_unicode
from .deltas import Call
from .json_calls import dump_json, load_json
from .source import Source, Steps
from .tagged_calls import OPEN, tagged_calls

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
_NAME_END = re.compile(r"[<>\n]")


def qwen3_coder(source: Source, schemas: Mapping[str, Mapping[str, Any]]) -> Steps[None]:
    """Text, and in it calls of the form

        <tool_call>
        <function=get_weather>
        <parameter=city>
        Oslo
        </parameter>
        </function>
        </tool_call>

    of which models leave the outer tags away at times. A value is text, without the line breaks next to its tags. Where the schema
    of its parameter (``schemas``: tool -> JSON schema of its arguments) allows no strings it is read as JSON, if it is that."""
    yield from tagged_calls(source, (OPEN, FUNCTION), lambda at: _call(source, at, schemas))


def _call(source: Source, at: int, schemas: Mapping[str, Mapping[str, Any]]) -> Steps[tuple[Call | None, int]]:
    """The call at ``at``, None if it is none, and where it ends or went wrong."""
    if source.text.startswith(OPEN, at):
        at = yield from source.space_end(at + len(OPEN))
        if not (yield from source.starts(FUNCTION, at)):
            return None, at
    name, at = yield from _name(source, at + len(FUNCTION))
    if name is None:
        return None, at
    schema, arguments = schemas.get(name, {}), {}
    at = yield from source.space_end(at)
    while (yield from source.starts(PARAMETER, at)):
        key, start = yield from _name(source, at + len(PARAMETER))
        if key is None:
            return None, start
        end = yield from source.find(END_PARAMETER, start)
        if end < 0:
            return None, len(source.text)
        arguments[key] = _value(source.text[start:end], schema, key)
        at = yield from source.space_end(end + len(END_PARAMETER))
    if not (yield from source.starts(END_FUNCTION, at)):
        return None, at
    try:
        return Call(name, dump_json(arguments)), at + len(END_FUNCTION)
    except (ValueError, RecursionError):  # a number that JSON has no form for
        return None, at + len(END_FUNCTION)


def _name(source: Source, start: int) -> Steps[tuple[str | None, int]]:
    """The name that ends with the next ``>``, and where the text goes on; None if there is none on this line."""
    while not (end := _NAME_END.search(source.text, start)) and not source.closed:
        yield None
    if end is None:
        return None, len(source.text)
    name = source.text[start : end.start()].strip()
    if end[0] != ">" or not name or not is_unicode(name):
        return None, end.start()
    return name, end.end()


def _value(text: str, schema: Mapping[str, Any], key: str) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    properties = schema.get("properties")
    types = _types(properties.get(key) if isinstance(properties, Mapping) else None, schema)
    bare = text.strip()
    if bare == "null" and ("null" in types or (types and "string" not in types)):
        return None
    if not types or "string" in types:
        return text
    try:
        return load_json(bare.lower() if "boolean" in types and bare in ("True", "False") else bare)
    except ValueError:
        return text


def _types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema allows, as far as it says so itself or refers to what does within ``root``. Schemas come from
    users, unchecked."""
    types: set[str] = set()
    references: set[str] = set()
    pending = [schema]
    while pending:
        if not isinstance(one := pending.pop(), Mapping):
            continue
        named = one.get("type")
        types.update(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))
        for combination in ("anyOf", "oneOf", "allOf"):
            if isinstance(schemas := one.get(combination), list):
                pending += schemas
        reference = one.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/") and reference not in references:
            references.add(reference)
            target: Any = root
            for step in reference[2:].split("/"):
                target = target.get(step) if isinstance(target, Mapping) else None
            pending.append(target)
    return types
