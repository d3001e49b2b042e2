"""What the deltas of a parser add up to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from framework.server.parsing import TOOL_FORMATS, Content, Delta, MessageParser, Reasoning, ToolCall


@dataclass
class Message:
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            match delta:
                case Content(text):
                    assert text
                    self.content += text
                case Reasoning(text):
                    assert text
                    self.reasoning += text
                case ToolCall(index, None, None, arguments):
                    name, before = self.calls[index]
                    self.calls[index] = name, before + arguments
                case ToolCall(index, str(call_id), str(name), arguments):
                    assert index == len(self.calls)
                    self.calls.append((name, arguments))
                    self.ids.append(call_id)


def parse(parser: MessageParser, pieces: Iterable[str]) -> Message:
    message = Message()
    for piece in pieces:
        message.add(parser.feed(piece))
    message.add(parser.finish())
    return message


def tool_parser(name: str, schemas: Mapping[str, Mapping[str, Any]] | None = None, **options: Any) -> MessageParser:
    return MessageParser(lambda source: TOOL_FORMATS[name].parse(source, schemas or {}), new_id=counted(), **options)


def counted() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"call-{next(numbers)}"
