"""From the messages of a chat to the text of a prompt."""

from __future__ import annotations

import inspect
from typing import Any

from jinja2 import TemplateError

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
    template = body.chat_template or serving.chat_template
    tokenizer = serving.engine.inputs.tokenizer
    if tokenizer is None or not (template or getattr(tokenizer, "chat_template", None)):
        raise APIError(400, "the model has no chat template: start the server with one, or use /v1/completions", "messages")
    try:
        return tokenizer.apply_chat_template(
            [_message(message) for message in body.messages],
            tools=body.tools,
            documents=body.documents,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            **_arguments(tokenizer, body),
        )
    except (TemplateError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:  # as the template is written
        raise APIError(400, f"the chat template cannot render these messages: {error}", "messages") from error


def _arguments(tokenizer: Any, body: ChatBody) -> dict[str, Any]:
    given = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        given.setdefault("reasoning_effort", body.reasoning_effort)
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    if taken := sorted(given.keys() & own.keys()):
        raise APIError(400, f"chat_template_kwargs cannot set {', '.join(taken)}", "chat_template_kwargs")
    return given


def _message(message: Message) -> dict[str, Any]:
    """With its text in one piece."""
    found = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list):
        found["content"] = "\n".join(_text(part) for part in message.content)
    elif message.content is None:
        found["content"] = ""
    return found


def _text(part: dict[str, Any]) -> str:
    text = part.get("text", part.get("refusal"))
    if part.get("type") not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
        raise APIError(
            400, f"content of type {str(part.get('type'))[:80]!r} is not supported: this model reads text only", "messages"
        )
    return text
