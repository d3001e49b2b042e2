"""The output of /v1/responses: items, and the events that tell how they grow."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .parsing import Content, Delta, Reasoning, ToolCall

Event = dict[str, Any]
"""One of OpenAI's stream events, without its number."""


def new_item_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


class ResponseItems:
    """Output items of one response, in the order in which the model wrote them: ``reasoning``, ``message``, ``function_call``.

    output  the items, as OpenAI writes them; the last may be in progress
    """

    def __init__(self, new_id: Callable[[str], str] = new_item_id) -> None:
        self.output: list[dict[str, Any]] = []
        self._new_id = new_id
        self._in_progress = False

    def add(self, deltas: Iterable[Delta], logprobs: Sequence[Any] = ()) -> Iterator[Event]:
        """The events of what is new. logprobs: of the tokens of its content."""
        for delta in deltas:
            match delta:
                case Content(text):
                    yield from self._text("message", "msg", "output_text", text, logprobs)
                    logprobs = ()
                case Reasoning(text):
                    yield from self._text("reasoning", "rs", "reasoning_text", text)
                case ToolCall(_, call_id, name, arguments):
                    yield from self._call(call_id, name, arguments)

    def close(self, status: str = "completed") -> Iterator[Event]:
        """The events of the end of the last item, if it is in progress. ``status``: completed or incomplete."""
        if not self._in_progress:
            return
        self._in_progress = False
        item = self.output[-1]
        item["status"] = status
        if item["type"] == "function_call":
            yield self._event("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        else:
            part = item["content"][0]
            said = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield self._event(f"{part['type']}.done", content_index=0, **said)
            yield self._event("content_part.done", content_index=0, part=part)
        yield {"type": "response.output_item.done", "output_index": len(self.output) - 1, "item": item}

    def _text(self, item_type: str, prefix: str, part_type: str, text: str, logprobs: Sequence[Any] = ()) -> Iterator[Event]:
        if not (self._in_progress and self.output[-1]["type"] == item_type):
            item: dict[str, Any] = {"id": self._new_id(prefix), "type": item_type, "status": "in_progress", "content": []}
            part: dict[str, Any] = {"type": part_type, "text": ""}
            if item_type == "message":
                item["role"] = "assistant"
                part.update(annotations=[], logprobs=[])
            else:
                item["summary"] = []
            yield from self._open(item)
            yield self._event("content_part.added", content_index=0, part=copy.deepcopy(part))
            item["content"].append(part)
        said = self.output[-1]["content"][0]
        said["text"] += text
        extra: dict[str, Any] = {}
        if "logprobs" in said:
            extra["logprobs"] = list(logprobs)
            said["logprobs"] += logprobs
        yield self._event(f"{part_type}.delta", content_index=0, delta=text, **extra)

    def _call(self, call_id: str | None, name: str | None, arguments: str) -> Iterator[Event]:
        if name is not None:
            item = {"id": self._new_id("fc"), "type": "function_call", "status": "in_progress"}
            yield from self._open({**item, "call_id": call_id, "name": name, "arguments": ""})
        if arguments:
            self.output[-1]["arguments"] += arguments
            yield self._event("function_call_arguments.delta", delta=arguments)

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        yield from self.close()
        self.output.append(item)
        self._in_progress = True
        added = {**item, "content": []} if "content" in item else dict(item)
        yield {"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": added}

    def _event(self, kind: str, **fields: Any) -> Event:
        """About the last item."""
        at = {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}
        return {"type": f"response.{kind}", **at, **fields}
