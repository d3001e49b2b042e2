"""What a user asks of the form of an output, checked as far as no tokenizer is needed."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

Kind = Literal["json", "regex", "choice", "grammar", "structural_tag"]

KINDS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
MAX_NESTING: Final = 64
"""Objects and arrays inside each other in a schema, a structural tag, or groups of a regex."""
MAX_BYTES: Final = 256 * 1024
MAX_VALUES: Final = MAX_BYTES // 2
"""In a schema or a structural tag: more cannot be written in so many bytes."""
MAX_REGEX_BYTES: Final = 16 * 1024
MAX_CHOICES: Final = 10_000
_ANY_OBJECT: Final = '{"type":"object"}'
_DATA_KEYWORDS: Final = ("const", "enum", "default", "examples")


@dataclass(frozen=True)
class GrammarSpec:
    """A constraint in one form, by which equal ones are known: what a backend compiles.

    text  of json and structural_tag JSON without spaces, of choice a JSON list
    """

    kind: Kind
    text: str
    any_whitespace: bool = True
    additional_properties: bool = True


@dataclass
class StructuredOutputsParams:
    """The form of an output, under vLLM's names: exactly one of the first six.

    json            a JSON schema, as text or as a dict; True allows any JSON
    regex           which the whole output matches
    choice          texts, of which the output is one
    grammar         in Lark's notation (with a rule ``start``), or in EBNF as of llama.cpp (``root ::= ...``)
    json_object     True: any JSON object
    structural_tag  free text with tagged parts of given forms, as xgrammar describes them, or in vLLM's older form, with
                    ``structures`` and ``triggers``: JSON text or a dict
    disable_any_whitespace         JSON comes without optional white space
    disable_additional_properties  objects of a JSON schema have the properties that it names, and no others, unless it speaks of
                                   ``additionalProperties`` itself
    Raises ValueError, naming field, value and limit; ``validate`` does so again after changes.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False

    def __post_init__(self) -> None:
        self.validate()

    @classmethod
    def of(cls, given: StructuredOutputsParams | Mapping[str, Any]) -> StructuredOutputsParams:
        """Itself, or made of a mapping of its fields."""
        if isinstance(given, cls):
            return given
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise _error("", given, "StructuredOutputsParams, or a dict of its fields")
        if unknown := [key for key in given if key not in known]:
            raise ValueError(f"structured_outputs has no {', '.join(map(repr, unknown))}: it has {', '.join(known)}")
        return cls(**given)

    def validate(self) -> None:
        """Checks every field, whether exactly one constraint is given, and its size."""
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        _require(
            self.json_object is None or isinstance(self.json_object, bool), "json_object", self.json_object, "True, False or None"
        )
        self.spec()

    def spec(self) -> GrammarSpec:
        """The constraint in one form. Raises as ``validate``."""
        given = [name for name in KINDS if getattr(self, name) is not None and not (name == "json_object" and not self.json_object)]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"structured_outputs takes exactly one of {', '.join(KINDS)}; {found}")
        kind: Any = given[0]
        value = getattr(self, kind)
        spaces, others = not self.disable_any_whitespace, not self.disable_additional_properties
        if kind == "json_object":
            return GrammarSpec("json", _ANY_OBJECT, spaces)
        if kind == "json":
            return GrammarSpec("json", _schema(value), spaces, others)
        if kind == "structural_tag":
            return GrammarSpec(kind, _compact(kind, _structural_tag(value)))
        return GrammarSpec(kind, _choice(value) if kind == "choice" else _text(kind, value))


def _schema(value: Any) -> str:
    schema = True if value is True else _parsed("json", value)
    _require(isinstance(schema, dict | bool), "json", value, "a JSON schema: a JSON object, or true")
    _require(schema is not False, "json", value, "a schema that something fits; this one fits nothing")
    text = _compact("json", schema)
    nodes = list(_schemas(schema))
    if not any("$id" in node for node in nodes):  # with one, a reference may be to a part that has it
        for node in nodes:
            for key in ("$ref", "$dynamicRef"):
                if isinstance(target := node.get(key), str) and not target.startswith("#"):
                    raise ValueError(
                        f"structured_outputs: json holds {key} {reprlib.repr(target)}, which lies elsewhere, and nothing is "
                        "fetched: a reference must begin with '#'; put the definition into $defs"
                    )
    return text


def _structural_tag(value: Any) -> dict[str, Any]:
    """As xgrammar describes it."""
    tag = _parsed("structural_tag", value)
    _require(isinstance(tag, dict), "structural_tag", value, "a JSON object")
    match tag:
        case {"structures": [*structures], "triggers": [*triggers]} if all(map(_is_structure, structures)):
            tags = [
                {"begin": found["begin"], "content": {"type": "json_schema", "json_schema": found["schema"]}, "end": found["end"]}
                for found in structures
            ]
            return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}
        case {"structures": _}:
            raise _error("structural_tag", value, "triggers, and structures that each have begin, schema and end")
    return tag


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"begin", "schema", "end"}


def _schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of a schema that may be a schema, those inside of given data aside."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack += [value for key, value in node.items() if key not in _DATA_KEYWORDS]
        elif isinstance(node, list):
            stack += node


def _parsed(name: str, value: Any) -> Any:
    """JSON text as what it stands for, and anything else as it is, nested as deep as is allowed."""
    if isinstance(value, str):
        _check_size(name, value, MAX_BYTES)
        try:
            value = json.loads(value)
        except RecursionError:
            raise _too_deep(name) from None
        except ValueError as error:
            raise ValueError(f"structured_outputs: {name} is no JSON: {error}; found {reprlib.repr(value)}") from None
    level, num_values = [value], 1
    for _ in range(MAX_NESTING):
        level = [inner for part in level for inner in _parts(part)]
        num_values += len(level)
        if num_values > MAX_VALUES:
            raise ValueError(f"structured_outputs: {name} holds more than {MAX_VALUES} values, which is the most")
    if any(isinstance(part, Mapping | list | tuple) for part in level):
        raise _too_deep(name)
    return value


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()


def _compact(name: str, value: Any) -> str:
    """In the order given: backends write an object's properties in the order of the schema."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"structured_outputs: {name} cannot be written as JSON: {error}") from None
    return _check_size(name, text, MAX_BYTES)


def _choice(value: Any) -> str:
    expected = f"a list of 1 to {MAX_CHOICES} texts that are not empty, without NUL"
    _require(isinstance(value, list | tuple) and 0 < len(value) <= MAX_CHOICES, "choice", value, expected)
    for text in value:
        _require(isinstance(text, str) and text and "\0" not in text, "choice", text, expected)
    return _compact("choice", list(dict.fromkeys(value)))


def _text(kind: str, value: Any) -> str:
    _require(isinstance(value, str) and value, kind, value, "text that is not empty")
    _require("\0" not in value, kind, value, "text without NUL")
    if kind == "regex":
        depth = 0
        _require(not (len(value) - len(value.rstrip("\\"))) % 2, kind, value, "complete: it ends within an escape")
        for char in _without_escapes(value):
            depth += (char == "(") - (char == ")")
            if depth > MAX_NESTING:
                raise _too_deep(kind)
        return _check_size(kind, value, MAX_REGEX_BYTES)
    return _check_size(kind, value, MAX_BYTES)


def _without_escapes(regex: str) -> Iterator[str]:
    chars = iter(regex)
    for char in chars:
        if char == "\\":
            next(chars, None)
        else:
            yield char


def _check_size(name: str, text: str, most: int) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _error(name, text, "text that UTF-8 can hold (no lone surrogates)") from None
    if size > most:
        raise ValueError(f"structured_outputs: {name} has {size} bytes, and may have {most}")
    return text


def _too_deep(name: str) -> ValueError:
    return ValueError(f"structured_outputs: {name} is nested more than {MAX_NESTING} deep, which is the most")


def _error(name: str, value: object, expected: str) -> ValueError:
    given = f"structured_outputs: {name}={reprlib.repr(value)}" if name else f"structured_outputs={reprlib.repr(value)}"
    return ValueError(f"{given} cannot work: it must be {expected}")


def _require(condition: object, name: str, value: object, expected: str) -> None:
    if not condition:
        raise _error(name, value, expected)
