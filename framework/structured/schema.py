"""JSON schemas as data."""

from __future__ import annotations

from typing import Any

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")


def close_objects(schema: Any) -> Any:
    """The schema with no other properties in any object than those it names, unless it speaks of them itself."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            closed[key] = {name: close_objects(inner) for name, inner in value.items()}
        elif key in _LISTS and isinstance(value, list):
            closed[key] = [close_objects(inner) for inner in value]
        elif key in _ONES:
            closed[key] = close_objects(value)
    if "properties" in schema or "patternProperties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


_ANNOTATIONS = frozenset(
    {
        "$schema",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$defs",
        "definitions",
    }
)
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
"""Keywords that a compiler of context-free grammars can do exactly, each beside the type that it is about."""


def first_inexact(schema: Any) -> str | None:
    """The first part of a schema that is not among those that every backend holds an output to; None if there is none."""
    if not isinstance(schema, dict):
        return None if schema is True else repr(schema)
    own = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    if (found := _inexact_keyword(own)) is not None:
        return found
    inner = [value for key in ("properties", "$defs", "definitions") for value in schema.get(key, {}).values()]
    inner += [value for key in ("anyOf", "prefixItems") for value in schema.get(key, ())]
    inner += [schema[key] for key in ("items", "additionalProperties") if schema.get(key, False) is not False]
    return next(filter(None, map(first_inexact, inner)), None)


def _inexact_keyword(own: dict[str, Any]) -> str | None:
    if "$ref" in own or "anyOf" in own:
        key = "$ref" if "$ref" in own else "anyOf"
        if len(own) > 1:
            return f"{next(other for other in own if other != key)!r} beside {key!r}"
        plain = key == "anyOf" or (own[key].startswith("#/") and not set("~%") & set(own[key]))
        return None if plain else f"'$ref': {own[key]!r}"
    if "const" in own or "enum" in own:
        key = "const" if "const" in own else "enum"
        if len(own) > 1:
            return f"{next(other for other in own if other != key)!r} beside {key!r}"
        values = own[key] if key == "enum" else [own[key]]
        return None if all(v is None or isinstance(v, str | bool | int) for v in values) else f"{key!r}: {values!r}"
    kind = own.get("type")
    if kind is None:
        return f"{next(iter(own))!r} without 'type'" if own else None
    if not isinstance(kind, str) or kind not in _OF_TYPE:
        return f"'type': {kind!r}"
    if others := own.keys() - {"type"} - _OF_TYPE[kind]:
        return f"{min(others)!r}"
    if own.get("properties") and own.get("additionalProperties") is not False:
        return "'additionalProperties' beside 'properties'"
    if not set(own.get("required", ())) <= set(own.get("properties", ())):
        return "'required' names that are not in 'properties'"
    return None
