"""From the messages of a chat to the text of a prompt."""

from __future__ import annotations

import inspect
import json
from typing import Any

from .errors import APIError
from .protocol.chat import ChatBody, Message
from .serving import Serving


def render(serving: Serving, body: ChatBody) -> str:
    """The conversation as the model reads it. Raises APIError for what the template or this server cannot take."""
    if body.chat_template is not None and not serving.config.trust_request_chat_template:
        raise APIError(
            400,
            "a chat template in a request is refused, as it could run for ever (see trust_request_chat_template)",
            "chat_template",
        )
    if not body.messages:
        raise APIError(400, "`messages` must hold at least one message", "messages")
    messages, arguments = [_message(message) for message in body.messages], _arguments(serving, body)
    try:
        return serving.engine.inputs.render(
            messages,
            body.chat_template or serving.chat_template,
            body.add_generation_prompt,
            body.continue_final_message,
            tools=body.tools,
            documents=body.documents,
            **arguments,
        )
    except ValueError as error:
        raise APIError(400, str(error), "messages") from error


def _arguments(serving: Serving, body: ChatBody) -> dict[str, Any]:
    given = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        given.setdefault("reasoning_effort", body.reasoning_effort)
    tokenizer = serving.engine.inputs.tokenizer
    own = {"messages", *(() if tokenizer is None else inspect.signature(tokenizer.apply_chat_template).parameters)}
    if taken := sorted(given.keys() & own):
        raise APIError(400, f"chat_template_kwargs cannot set {', '.join(taken)}", "chat_template_kwargs")
    return given


def _message(message: Message) -> dict[str, Any]:
    """With its text in one piece."""
    found = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list):
        found["content"] = "\n".join(_text(part) for part in message.content)
    elif message.content is None:
        found["content"] = ""
    if isinstance(calls := found.get("tool_calls"), list):
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def _call(call: Any) -> Any:
    """A call of the model, with its arguments as an object, as templates want them; as they are where they are none: models err."""
    match call:
        case {"function": {"arguments": str(arguments), **function}, **rest}:
            try:
                read = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError):
                return call
            return {**rest, "function": {**function, "arguments": read if isinstance(read, dict) else arguments}}
    return call


def _text(part: dict[str, Any]) -> str:
    text = part.get("text", part.get("refusal"))
    if part.get("type") not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
        raise APIError(
            400, f"content of type {str(part.get('type'))[:80]!r} is not supported: this model reads text only", "messages"
        )
    return text
