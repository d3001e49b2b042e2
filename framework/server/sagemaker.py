"""/invocations: the one endpoint, beside /ping, that a container on Amazon SageMaker answers. Open without a key, as callers are
checked before they get here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from .chat import create_chat_completion
from .completions import create_completion
from .protocol.chat import ChatAnswer, ChatBody
from .protocol.common import ERRORS
from .protocol.completions import CompletionAnswer, CompletionBody

router = APIRouter()
_BODIES = {"anyOf": [{"$ref": f"#/components/schemas/{body.__name__}"} for body in (ChatBody, CompletionBody)]}


@router.post(
    "/invocations",
    response_model=None,
    responses={200: {"model": ChatAnswer | CompletionAnswer}, **ERRORS},
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": _BODIES}}}},
)
async def invoke(body: dict[str, Any], request: Request) -> Response:
    """Answers a body with messages as /v1/chat/completions does, and one with a prompt as /v1/completions does."""
    try:
        if "prompt" in body and "messages" not in body:
            return await create_completion(CompletionBody.model_validate(body), request)
        return await create_chat_completion(ChatBody.model_validate(body), request)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None
