"""What operators ask: is it alive, which version, how loaded. Open without a key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from .. import __version__
from .errors import APIError
from .protocol.common import ERRORS, ErrorResponse
from .serving import Serving

router = APIRouter()
_NOT_HERE = {"/v2/embed": "Cohere's form of embeddings", "/v1/audio/transcriptions": "audio", "/v1/audio/translations": "audio"}
"""Path -> what no model that is served here can do."""


@router.get("/health", response_class=Response, responses={503: {"model": ErrorResponse}})
@router.get("/ping", response_class=Response, responses={503: {"model": ErrorResponse}})
@router.post("/ping", response_class=Response, responses={503: {"model": ErrorResponse}})
async def health(request: Request) -> Response:
    """200 while requests can be served, 503 once the engine is dead."""
    await request.app.state.serving.engine.check_health()
    return Response()


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/load")
async def load(request: Request) -> dict[str, int]:
    """Completions that were admitted and have not ended."""
    serving: Serving = request.app.state.serving
    return {"server_load": serving.num_in_work}


async def _refuse(request: Request) -> Response:
    what = _NOT_HERE[request.scope["route"].path]
    raise APIError(501, f"The model does not support {what}")


for _path in _NOT_HERE:
    router.post(_path, name="not available", responses={status: ERRORS[status] for status in (401, 501)})(_refuse)
