"""A message from its text: reasoning first, then content and tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import hermes, llama3_json, qwen3_coder, tagged_calls, think
from .deltas import Call, Content, Delta, ToolCall
from .source import Source, Steps

Schemas = Mapping[str, Mapping[str, Any]]
"""Tool -> JSON schema of its arguments."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tool calls.

    parse  yields content and calls
    tags   what it looks for; where the tokenizer calls one of them special, special tokens must not be skipped
    """

    parse: Callable[[Source, Schemas], Steps[None]]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class ReasoningFormat:
    """How a family of models writes reasoning. ``implied``: it begins with the message even where no tag opens it."""

    implied: bool
    tags: tuple[str, ...] = (think.OPEN, think.CLOSE)


_TAGS = (tagged_calls.OPEN, tagged_calls.CLOSE)
_QWEN3_CODER = ToolFormat(qwen3_coder.qwen3_coder, _TAGS)
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "hermes": ToolFormat(lambda source, _: hermes.hermes(source), _TAGS),
    "llama3_json": ToolFormat(lambda source, _: llama3_json.llama3_json(source), (llama3_json.PYTHON_TAG,)),
    "qwen3_coder": _QWEN3_CODER,
    "qwen3_xml": _QWEN3_CODER,
}
REASONING_FORMATS: Mapping[str, ReasoningFormat] = {"deepseek_r1": ReasoningFormat(True), "qwen3": ReasoningFormat(False)}


def new_call_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


class MessageParser:
    """Turns the text of one completion into deltas of a message.

    However the text is cut into pieces, the deltas joined together are the same. What looks like a call and is none stays
    content; a call is given once it is known to be one, whole, so that nothing ever has to be taken back.

    calls     reads what comes after the reasoning; None: it is all content
    opened    whether the text begins inside reasoning; None: there is none
    new_id    of a tool call
    parallel  False: of several calls only the first is given

    ``num_calls`` were found, and ``num_reasoning_tokens`` spent on reasoning, with its tags.
    """

    def __init__(
        self,
        calls: Callable[[Source], Steps[None]] | None = None,
        opened: bool | None = None,
        new_id: Callable[[], str] = new_call_id,
        parallel: bool = True,
    ) -> None:
        self._source = Source()
        self._steps = self._parse(calls, opened)
        self._new_id, self._parallel = new_id, parallel
        self._is_reasoning = opened is not None
        self._tokens_per_character = 0.0  # of the last piece in which there was reasoning
        self.num_reasoning_tokens = self.num_calls = 0

    def feed(self, text: str, num_tokens: int = 0) -> list[Delta]:
        """What more of the text makes certain. ``num_tokens``: how many tokens it came from; they count as reasoning up to
        the one that ends it; of several at once, by their share of the characters."""
        if self._is_reasoning:
            self.num_reasoning_tokens += num_tokens
            self._tokens_per_character = num_tokens / max(len(text), 1)
        self._source.text += text
        return list(self._advance())

    def finish(self) -> list[Delta]:
        """What was held back, once the text is at its end."""
        self._source.closed = True
        return list(self._advance())

    def _parse(self, calls: Callable[[Source], Steps[None]] | None, opened: bool | None) -> Steps[None]:
        if opened is not None:
            found = yield from think.think(self._source, opened)
            self._is_reasoning = False
            if found:
                self.num_reasoning_tokens -= int(self._tokens_per_character * len(self._source.text))
                yield from self._source.skip_space()
            else:
                self.num_reasoning_tokens = 0  # what came until that was known
        if calls is not None:
            yield from calls(self._source)
        yield from self._source.stream_rest(Content)

    def _advance(self) -> Iterator[Delta]:
        for step in self._steps:
            if step is None:
                return
            if not isinstance(step, Call):
                yield step
                continue
            if step.name is not None:
                self.num_calls += 1
            if self.num_calls == 1 or self._parallel:
                new_id = None if step.name is None else self._new_id()
                yield ToolCall(self.num_calls - 1, new_id, step.name, step.arguments)
