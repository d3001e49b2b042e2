"""Errors as clients see them: status codes, and OpenAI's error object."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..engine.errors import EngineDeadError
from ..sampling_params import SamplingParams

MAX_LISTED = 10
"""Faults of one body that are told."""
MAX_INPUT = 200
"""Characters of a faulty value that are told."""
MAX_MESSAGE = 2500
"""Characters of a message: what it quotes may have megabytes."""

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_PARAM = re.compile(r"(?:Sampling|Pooling)Params: (\w+)")


class APIError(Exception):
    """What a request is answered with instead of a completion."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        *,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = _cut(message, MAX_MESSAGE)
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers
        self.kind = kind or _TYPES.get(status) or HTTPStatus(status).phrase

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}

    def json(self) -> bytes:
        """In ASCII: a message may quote half of a surrogate pair."""
        return json.dumps(self.body()).encode()

    def response(self) -> Response:
        headers = None if self.headers is None else dict(self.headers)
        return Response(self.json(), self.status, headers, "application/json")


def api_error(error: Exception) -> APIError:
    """What a client is told of an exception: ValueErrors are its own fault."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, EngineDeadError):
        return APIError(503, f"the engine is dead: {error}")
    if isinstance(error, NotImplementedError):
        return APIError(501, str(error))
    if isinstance(error, ValueError):
        found = _PARAM.match(str(error))
        return APIError(400, str(error), found and found[1])
    return APIError(500, str(error) if isinstance(error, RuntimeError) else "internal error; the server's log says more")


def no_numbers(params: SamplingParams) -> APIError:
    """Of a completion that ended because no token could be sampled: its request's fault if that asks for what may leave none."""
    restricted = params.structured_outputs or params.allowed_token_ids or params.bad_words or params.min_tokens
    if restricted or params.repetition_penalty != 1:
        return APIError(400, "no token can be sampled that fits all of the request's parameters")
    return APIError(500, "the model computed no numbers for this request")


def validation_error(error: RequestValidationError) -> APIError:
    """Of a body that does not fit its schema."""
    faults = error.errors()
    lines = [f"{_place(fault)}: {fault['msg']}{_input(fault)}" for fault in faults[:MAX_LISTED]]
    if len(faults) > MAX_LISTED:
        lines.append(f"and {len(faults) - MAX_LISTED} more")
    param = next((str(part) for part in faults[0]["loc"][1:2]), None) if faults else None
    return APIError(400, "; ".join(lines), param, kind="Bad Request")


def _place(fault: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in fault["loc"])


def _input(fault: Mapping[str, Any]) -> str:
    if fault["type"] in ("missing", "json_invalid"):
        return ""
    return f" (found {shown(fault.get('input'))})"


def shown(value: Any) -> str:
    """Text as it is, other values as Python has them, in part, at no more cost than what is told of them."""
    return _cut(value if isinstance(value, str) else _SHORT.repr(value), MAX_INPUT)


class _Short(reprlib.Repr):
    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)  # which sorts all that it is given


_SHORT = _Short()


def _cut(text: str, most: int) -> str:
    return text[:most] + "..." * (len(text) > most)


def install(app: FastAPI) -> None:
    """Makes all that is raised in ``app`` an error object."""

    async def of_error(request: Request, error: Exception) -> Response:
        return api_error(error).response()

    async def of_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error).response()

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return APIError(error.status_code, str(error.detail), headers=error.headers).response()

    for kind in (APIError, EngineDeadError, NotImplementedError, ValueError):
        app.add_exception_handler(kind, of_error)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_error)  # and it is logged
