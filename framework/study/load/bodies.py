"""Requests of a workload as bodies of HTTP requests, made before anything is measured."""

from __future__ import annotations

import json
from typing import Any

from ..workload import WorkloadRequest
from .config import HttpConfig


def body(request: WorkloadRequest, config: HttpConfig, model: str, tokenizer: Any) -> bytes:
    """JSON. Raises ValueError where a prompt is to be text and there is no tokenizer."""
    sampling = request.sampling
    fields: dict[str, Any] = {"model": model}
    if config.is_chat:
        fields["messages"] = [{"role": "user", "content": _content(request, tokenizer)}]
        fields["max_completion_tokens"] = sampling.max_tokens
    else:
        fields["prompt"] = request.prompt_token_ids if config.prompts == "tokens" else _text(request.prompt_token_ids, tokenizer)
        fields["max_tokens"] = sampling.max_tokens
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"):
        fields[name] = getattr(sampling, name)
    if config.extensions:  # all of them: a server may have other defaults for a model
        for name in ("top_k", "min_p", "repetition_penalty", "ignore_eos"):
            fields[name] = getattr(sampling, name)
        fields |= {"priority": request.priority, "return_token_ids": True}
    fields |= {"stream": True, "stream_options": {"include_usage": True}} | config.extra_body
    return json.dumps(fields).encode()


def _content(request: WorkloadRequest, tokenizer: Any) -> str | list[dict[str, Any]]:
    """What a chat is asked: text, or pieces of it with the images between them."""
    ids, parts, start = request.prompt_token_ids, list[dict[str, Any]](), 0
    if not request.sent_images:
        return _text(ids, tokenizer)
    for image in request.sent_images:
        parts += _piece(ids[start : image.start], tokenizer)
        parts.append({"type": "image_url", "image_url": {"url": image.url}})
        start = image.start
    return parts + _piece(ids[start:], tokenizer)


def _piece(ids: list[int], tokenizer: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": _text(ids, tokenizer)}] if ids else []


def _text(ids: list[int], tokenizer: Any) -> str:
    if tokenizer is None:
        raise ValueError(
            "a prompt as text needs a tokenizer, and this model has none: set model.tokenizer, or http.prompts=tokens "
            "with http.endpoint=/v1/completions"
        )
    return tokenizer.decode(ids)
