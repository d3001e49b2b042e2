"""/v1/embeddings and /pooling."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from ..engine.images import image_from_url
from ..engine.prompts import Prompt
from ..pooling_params import PoolingParams
from .errors import APIError
from .pooling import Output, PoolingCall, Prompts
from .protocol.chat import Message
from .protocol.common import ERRORS
from .protocol.pooling import EmbeddingAnswer, EmbeddingBody, EncodeAnswer, EncodeBody
from .sse import json_response

router = APIRouter()


@router.post("/v1/embeddings", response_model=None, responses={200: {"model": EmbeddingAnswer}, **ERRORS})
async def create_embeddings(body: EmbeddingBody, request: Request) -> Response:
    """A vector for each input."""
    call = PoolingCall(body, request, "embeddings", "embd")
    outputs = await _outputs(call, body, call.params("embed", dimensions=body.dimensions))
    data = [
        {"index": i, "object": "embedding", "embedding": _encoded(output.outputs.data, body.encoding_format)}
        for i, output in enumerate(outputs)
    ]
    return json_response({**call.common, "data": data, "usage": call.usage(outputs)})


@router.post("/pooling", response_model=None, responses={200: {"model": EncodeAnswer}, **ERRORS})
async def create_pooling(body: EncodeBody, request: Request) -> Response:
    """What the model makes of each input: a vector, or one for every token."""
    call = PoolingCall(body, request, "pooling", "pool")
    given = {"step_tag_id": body.step_tag_id, "returned_token_ids": body.returned_token_ids, "dimensions": body.dimensions}
    outputs = await _outputs(call, body, call.params(body.task, **given))
    data = [
        {"index": i, "object": "pooling", "data": _encoded(output.outputs.data, body.encoding_format)}
        for i, output in enumerate(outputs)
    ]
    return json_response({**call.common, "data": data, "usage": call.usage(outputs)})


async def _outputs(call: PoolingCall, body: EmbeddingBody, params: PoolingParams) -> list[Output]:
    if (body.input is None) == (body.messages is None):
        raise APIError(400, "one of `input` and `messages` must be given, and not both", "input")
    given = [_of_messages(call, body.messages)] if body.messages is not None else call.listed(body.input or [])

    def prepare() -> Prompts:
        cut, name, special = body.truncate_prompt_tokens, body.prompt_name, body.add_special_tokens
        prompts = [_image(each.url) if isinstance(each, ImageURL) else each for each in given]
        return [(call.inputs.prompt(prompt, cut, name, special), params) for prompt in prompts]

    return await call.outputs(len(given), prepare)


@dataclass(frozen=True)
class ImageURL:
    """What a message says of an image, whose pixels are not looked at by the thread that serves all."""

    url: Any


def _of_messages(call: PoolingCall, messages: Sequence[Message]) -> str | ImageURL:
    """The one thing that they hold. Raises APIError."""
    if not call.inputs.rules.has_towers:
        raise APIError(400, "`messages` are for models that embed images, and this one takes texts: give `input`", "messages")
    match [part for message in messages for part in _parts(message.content)]:
        case [{"type": "text", "text": str(text)}]:
            call.check_texts([text])
            return text
        case [{"type": "image_url", "image_url": {"url": url}}]:
            return ImageURL(url)
        case found:
            raise APIError(
                400,
                '`messages` must hold one text, or one image as {"type": "image_url", "image_url": {"url": "data:image/png;base64,'
                f'..."}}}}, which are embedded apart; found {len(found)} parts: {str(found)[:100]}',
                "messages",
            )


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _image(url: Any) -> Prompt:
    return {"prompt": "", "multi_modal_data": {"image": image_from_url(url)}}


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    """Numbers, or their bytes as little-endian float32 in base64."""
    return vector.tolist() if encoding == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
