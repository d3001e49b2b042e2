"""/v1/models."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from .adapters import card_fields
from .errors import APIError
from .protocol.common import ErrorResponse, Unauthorized
from .serving import Serving

router = APIRouter(responses={401: {"model": Unauthorized}})


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The names that the model is served by, and its adapters."""
    return {"object": "list", "data": _cards(request.app.state.serving)}


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorResponse}})
async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
    """One of them."""
    for card in _cards(request.app.state.serving):
        if card["id"] == model:
            return card
    raise APIError(404, f"The model `{model}` does not exist.", "model")


def _cards(serving: Serving) -> list[dict[str, Any]]:
    card = {
        "id": "",
        "object": "model",
        "created": int(time.time()),
        "owned_by": "kernelswap",
        "root": serving.engine.config.model.name,
        "parent": None,
        "max_model_len": serving.engine.info.max_model_len,
        "permission": [],
    }
    own = [{**card, "id": name} for name in serving.model_names]
    return own + [{**card, **card_fields(one, serving.model_names[0])} for one in serving.adapters.known.values()]
