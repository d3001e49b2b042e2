"""From the messages of a chat to the text of a prompt."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from ..engine.prompts import EngineInput
from .errors import APIError
from .image_urls import is_fetched
from .protocol.chat import ChatBody, Message
from .serving import Serving

Images = Mapping[str, Any]
"""Those that were fetched, by their URLs."""


async def fetch_images(serving: Serving, body: ChatBody) -> Images:
    """Those of a conversation that are elsewhere. Raises APIError for what cannot be had, or is too much."""
    parts = [part for message in body.messages for part in message.content or () if isinstance(part, dict) and _is_image(part)]
    if not parts:
        return {}
    most = serving.config.max_num_images
    if len(parts) > most:
        raise APIError(400, f"{len(parts)} images are more than the {most} that this server takes in a request", "messages")
    try:
        serving.engine.inputs.check_reads_images("a message")
        return await serving.fetching([url for url in dict.fromkeys(map(_url, parts)) if is_fetched(url)])
    except ValueError as error:
        raise APIError(400, str(error), "messages") from error


def render(serving: Serving, body: ChatBody, fetched: Images) -> tuple[str, list[Any]]:
    """The conversation as the model reads it, and the images that stand in it. Raises APIError for what the template or this server
    cannot take."""
    if body.chat_template is not None and not serving.config.trust_request_chat_template:
        raise APIError(
            400,
            "a chat template in a request is refused, as it could run for ever (see trust_request_chat_template)",
            "chat_template",
        )
    if not body.messages:
        raise APIError(400, "`messages` must hold at least one message", "messages")
    inputs, arguments = serving.engine.inputs, _arguments(serving, body)
    messages = [_message(message, fetched) for message in body.messages]
    try:
        chat_template = body.chat_template or serving.chat_template
        messages, images = inputs.chat_template.take_images(messages, chat_template)
        text = inputs.chat_template.render(
            messages,
            chat_template,
            body.add_generation_prompt,
            body.continue_final_message,
            tools=body.tools,
            documents=body.documents,
            **arguments,
        )
    except ValueError as error:
        raise APIError(400, str(error), "messages") from error
    return serving.check_text(text), images


def tokenize(serving: Serving, body: ChatBody, fetched: Images) -> EngineInput:
    """The same in tokens. Raises APIError."""
    text, images = render(serving, body, fetched)
    inputs = serving.engine.inputs
    try:
        return inputs.with_images(text, images, lambda part: inputs.encode(part, body.add_special_tokens))
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


def _message(message: Message, fetched: Images) -> dict[str, Any]:
    """With its text in one piece, or in parts with images between them."""
    found = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list) and any(_is_image(part) for part in message.content):
        found["content"] = [_image(part, fetched) if _is_image(part) else _text_part(part) for part in message.content]
    elif isinstance(message.content, list):
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


def _is_image(part: dict[str, Any]) -> bool:
    return part.get("type") in ("image_url", "input_image")


def _url(part: dict[str, Any]) -> Any:
    """As chat completions write it, and /v1/responses."""
    found = part.get("image_url")
    url = found.get("url") if isinstance(found, dict) else found
    return url if isinstance(url, str) else str(url)


def _image(part: dict[str, Any], fetched: Images) -> dict[str, Any]:
    url = _url(part)
    return {"type": "image", "image": fetched[url]} if url in fetched else {"type": "image_url", "image_url": url}


def _text_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": _text(part)}


def _text(part: dict[str, Any]) -> str:
    text = part.get("text", part.get("refusal"))
    if part.get("type") not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
        raise APIError(
            400,
            f"content of type {str(part.get('type'))[:80]!r} is not supported: a message holds text, and images (image_url) where "
            "the model reads them",
            "messages",
        )
    return text
