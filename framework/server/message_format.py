"""Which tools a request offers, whether the model may or must call them, and so how its text is to be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .errors import APIError
from .parsing import REASONING_FORMATS, TOOL_FORMATS, MessageParser
from .parsing.forced import named, required
from .parsing.source import Source, Steps
from .parsing.think import is_open

_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class MessageFormat:
    """How the messages of one request are read.

    calls            reads what comes after the reasoning; None: that is all content
    reasoning        name of its format; None: none is looked for
    schema           JSON schema that the text must follow from its first token on, because the request asked for a call
    is_named         the call is that of one tool, named by the request
    tags             that must reach the parser, even where they are special tokens
    parallel         False: only the first call is given
    """

    calls: Callable[[Source], Steps[None]] | None = None
    reasoning: str | None = None
    schema: Mapping[str, Any] | None = None
    is_named: bool = False
    tags: frozenset[str] = frozenset()
    parallel: bool = True

    @property
    def is_plain(self) -> bool:
        """All text is content."""
        return self.calls is None and self.reasoning is None

    def parser(self, prompt: str) -> MessageParser:
        """For one completion of this prompt."""
        opened = None if self.reasoning is None else is_open(prompt, REASONING_FORMATS[self.reasoning].implied)
        return MessageParser(self.calls, opened, parallel=self.parallel)


def message_format(
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any] | None,
    *,
    parallel: bool = True,
    auto_parser: str | None = None,
    reasoning_parser: str | None = None,
    is_constrained: bool = False,
) -> MessageFormat:
    """The format that a request's ``tools`` and ``tool_choice``, as of chat completions, ask for.

    auto_parser       reads calls that the model makes by itself; None: it may not
    reasoning_parser  reads what the model thinks first
    is_constrained    the text follows a grammar from its first token on, so that there is no reasoning

    Raises APIError."""
    schemas = _schemas(tools)
    if choice is not None and choice != "none" and not tools:
        raise _refusal("When using `tool_choice`, `tools` must be set.")
    match choice or ("auto" if tools else "none"):
        case "required":
            return MessageFormat(required, schema=_required_schema(schemas, parallel), parallel=parallel)
        case {"type": "function", "function": {"name": str(name)}}:
            if name not in schemas:
                raise _refusal(f"`tool_choice` names {name!r}, which is none of the `tools`: {', '.join(schemas)}")
            return MessageFormat(partial(named, name=name), schema=schemas[name], is_named=True)
        case "none":
            calls, tags = None, set()
        case "auto":
            if auto_parser is None:
                raise _refusal('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
            calls, tags = partial(_free_calls, auto_parser, schemas), set(TOOL_FORMATS[auto_parser].tags)
        case _:
            raise _refusal(
                f'`tool_choice` must be "none", "auto", "required" or {{"type": "function", "function": {{"name": ...}}}}; '
                f"found {str(choice)[:80]!r}"
            )
    reasoning = None if is_constrained else reasoning_parser
    if reasoning is not None:
        tags.update(REASONING_FORMATS[reasoning].tags)
    return MessageFormat(calls, reasoning, tags=frozenset(tags), parallel=parallel)


def _free_calls(parser: str, schemas: Mapping[str, Mapping[str, Any]], source: Source) -> Steps[None]:
    return TOOL_FORMATS[parser].parse(source, schemas)


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        match tool:
            case {"type": "function", "function": {"name": str(name), **rest}} if name:
                parameters = rest.get("parameters")
                if parameters is not None and not isinstance(parameters, Mapping):
                    raise _refusal(f"the parameters of the tool {name!r} must be a JSON schema, an object", "tools")
                found[name] = parameters or _NO_ARGUMENTS
            case _:
                raise _refusal(
                    'each of `tools` must be {"type": "function", "function": {"name": ..., "parameters": {...}}}; '
                    f"found {str(tool)[:200]}",
                    "tools",
                )
    return found


def _required_schema(schemas: Mapping[str, Mapping[str, Any]], parallel: bool) -> dict[str, Any]:
    """Of a list of calls. Definitions move to its root, where references look for them."""
    definitions: dict[str, dict[str, Any]] = {}
    calls = []
    for name, schema in schemas.items():
        own = dict(schema)
        for key in ("$defs", "definitions"):
            moved = own.pop(key, None) or {}
            if not isinstance(moved, Mapping):
                raise _refusal(f"{key} of the tool {name!r} must be an object", "tools")
            for defined, one in moved.items():
                if definitions.setdefault(key, {}).setdefault(defined, one) != one:
                    raise _refusal(f"two tools define {key}/{defined}, each in its own way: rename one of them", "tools")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [name]}, "parameters": own},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **definitions}
    return schema if parallel else {**schema, "maxItems": 1}


def _refusal(message: str, param: str = "tool_choice") -> APIError:
    return APIError(400, message, param)
