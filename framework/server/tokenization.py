"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from . import chat_template
from .errors import APIError
from .protocol.common import ERRORS
from .protocol.tokenization import DetokenizeBody, Detokenized, TokenizeBody, TokenizeChatBody, Tokenized
from .serving import Serving
from .sse import json_response

router = APIRouter(responses={status: ERRORS[status] for status in (400, 404, 408, 413)})


@router.post("/tokenize", response_model=None, responses={200: {"model": Tokenized}})
async def tokenize(body: TokenizeChatBody | TokenizeBody, request: Request) -> Response:
    """The token ids of a text, or of a conversation as the model reads it."""
    serving: Serving = request.app.state.serving
    serving.model_name(body.model)
    inputs = serving.engine.inputs
    fetched = {} if isinstance(body, TokenizeBody) else await chat_template.fetch_images(serving, body)

    def work() -> dict[str, Any]:
        if isinstance(body, TokenizeBody):
            tokens = inputs.encode(serving.check_text(body.prompt), body.add_special_tokens)
        else:
            tokens = chat_template.tokenize(serving, body, fetched).token_ids
        texts = inputs.tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None
        return {"count": len(tokens), "max_model_len": serving.engine.info.max_model_len, "tokens": tokens, "token_strs": texts}

    return json_response(await serving.tokenizing(work))


@router.post("/detokenize", response_model=None, responses={200: {"model": Detokenized}})
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """The text of token ids."""
    serving: Serving = request.app.state.serving
    serving.model_name(body.model)
    vocab_size = serving.engine.info.vocab_size
    if any(token >= vocab_size and token != serving.engine.inputs.placeholder for token in body.tokens):
        raise APIError(400, f"the model's token ids are 0 to {vocab_size - 1}", "tokens")
    return json_response({"prompt": await serving.tokenizing(lambda: serving.engine.inputs.decode(body.tokens))})
