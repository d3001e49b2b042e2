"""/v1/embeddings and /pooling."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from ..pooling_params import PoolingParams
from .pooling import Output, PoolingCall, Prompts
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
    given = call.listed(body.input)

    def prepare() -> Prompts:
        cut, name, special = body.truncate_prompt_tokens, body.prompt_name, body.add_special_tokens
        return [(call.inputs.prompt(each, cut, name, special), params) for each in given]

    return await call.outputs(len(given), prepare)


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    """Numbers, or their bytes as little-endian float32 in base64."""
    return vector.tolist() if encoding == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
