"""What completions and chat completions have in common."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request

from ..engine.prompts import EngineInput
from ..outputs import RequestOutput
from ..sampling_params import SamplingParams
from .beams import beam_params
from .errors import APIError
from .protocol.common import GenerationBody
from .serving import Serving

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,256}")


class Generation:
    """One request on its way to its answer.

    max_tokens    that a completion is asked to have at most; None: nothing is asked
    as_token_ids  log-probabilities name tokens by their ids
    common        what the answer, or each of its chunks, begins with
    """

    body: GenerationBody

    def __init__(
        self,
        serving: Serving,
        body: GenerationBody,
        request: Request,
        params: SamplingParams,
        max_tokens: int | None,
        *,
        id_prefix: str,
        kind: str,
    ) -> None:
        """``kind``: of the answer, or of a chunk. Raises ValueError or APIError for what cannot be."""
        serving.check_generates()
        self.serving, self.body, self.params, self.max_tokens = serving, body, params, max_tokens
        self.as_token_ids = bool(body.return_tokens_as_token_ids or serving.config.return_tokens_as_token_ids)
        self._beams = beam_params(serving.engine, body, params)
        self._priority = priority_of(body, request)
        self._lora_request = serving.lora_request(body.model)
        self.common: dict[str, Any] = {
            "id": f"{id_prefix}-{request_id_of(body, request)}",
            "object": kind,
            "created": int(time.time()),
            "model": serving.model_name(body.model),
        }

    def outputs(self, prompts: Sequence[EngineInput]) -> aclosing[AsyncGenerator[tuple[int, RequestOutput], None]]:
        """Of all prompts, as ``Serving.outputs``."""
        return aclosing(self.serving.outputs(prompts, self.params, self._priority, self._beams, self._lora_request))

    async def tokenized(self, tokenize: Callable[[], list[EngineInput]]) -> list[EngineInput]:
        """The prompts that ``tokenize`` returns. Raises APIError for those that cannot be served."""
        prompts = await self.serving.tokenizing(tokenize)
        for prompt in prompts:
            self.serving.check_input(prompt, self.max_tokens)
        return prompts

    def kept(self) -> slice:
        """Which of a prompt's tokens are used."""
        most = self.body.truncate_prompt_tokens
        if most is None:
            return slice(None)
        if most == -1:
            most = max(self.serving.engine.info.max_model_len - (self.max_tokens or 1), 0)
        return slice(most) if self.body.truncation_side == "right" else slice(-most if most else 2**62, None)

    def usage_chunks(self) -> tuple[bool, bool]:
        """Whether a stream's last chunk tells the usage, and whether all chunks do."""
        options = self.body.stream_options
        include = self.serving.config.enable_force_include_usage or (options is not None and options.include_usage)
        return include, include and options is not None and options.continuous_usage_stats


def priority_of(body: Any, request: Request) -> int:
    """Of the body, else of the header X-Vllm-Priority, else 0."""
    if body.priority is not None:
        return body.priority
    header = request.headers.get("x-vllm-priority", "0")
    try:
        return int(header)
    except ValueError:
        raise APIError(400, f"the header X-Vllm-Priority must be an integer; found {header[:80]!r}", "priority") from None


def request_id_of(body: Any, request: Request) -> str:
    """As the client names the request: by the body, or by the header X-Request-Id."""
    given = body.request_id or request.headers.get("x-request-id")
    if given is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        raise APIError(400, "a request id must be 1 to 256 printable ASCII characters without spaces", "request_id")
    return given
