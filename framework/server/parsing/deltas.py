"""What a message is made of, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """As formats yield it: a call begins where ``name`` is given, else these are more of the last one's arguments."""

    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call begins, where ``id`` and ``name`` are given, or more arguments of one. All ``arguments`` of an index together
    are JSON text of an object."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Delta = Content | Reasoning | ToolCall
