"""Messages as chat completions tell them: whole, and in deltas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..outputs import CompletionOutput
from .parsing import Content, Delta, MessageParser, Reasoning, ToolCall


def read(parser: MessageParser, completion: CompletionOutput) -> list[Delta]:
    """What is new of a message, from what is new of its completion."""
    deltas = parser.feed(completion.text, len(completion.token_ids))
    return deltas + parser.finish() if completion.finished() else deltas


def delta_fields(deltas: Iterable[Delta]) -> dict[str, Any]:
    """Deltas as one object: ``content``, ``reasoning`` (and under its older name), ``tool_calls``."""
    fields: dict[str, Any] = {}
    for delta in deltas:
        match delta:
            case Content(text):
                fields["content"] = fields.get("content", "") + text
            case Reasoning(text):
                fields["reasoning"] = fields["reasoning_content"] = fields.get("reasoning", "") + text
            case ToolCall(index, call_id, name, arguments):
                calls = fields.setdefault("tool_calls", [])
                if name is not None:
                    function = {"name": name, "arguments": arguments}
                    calls.append({"index": index, "id": call_id, "type": "function", "function": function})
                elif calls and calls[-1]["index"] == index:
                    calls[-1]["function"]["arguments"] += arguments
                else:
                    calls.append({"index": index, "function": {"arguments": arguments}})
    return fields


class MessageBuilder:
    """One completion, put together from its outputs: one that holds all of it, or deltas."""

    def __init__(self, parser: MessageParser) -> None:
        self.parser = parser
        self.completion = CompletionOutput(0, "", [])
        self._deltas: list[Delta] = []

    def add(self, new: CompletionOutput) -> None:
        known = self.completion
        self._deltas += read(self.parser, new)
        known.index, known.finish_reason, known.stop_reason = new.index, new.finish_reason, new.stop_reason
        known.token_ids += new.token_ids
        if new.logprobs is not None:
            if known.logprobs is None:
                known.logprobs = []
            known.logprobs += new.logprobs

    def fields(self) -> dict[str, Any]:
        """Of the message, but for its role."""
        fields = delta_fields(self._deltas)
        for call in fields.get("tool_calls", ()):
            del call["index"]
        return {"content": None if fields else "", "refusal": None, **fields}
