"""What the endpoints of models that pool have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastapi import Request

from ..engine.pooling import PoolingInputs
from ..engine.prompts import EngineInput
from ..pooling_outputs import PoolingOutput, PoolingRequestOutput
from ..pooling_params import PoolingParams, PoolingTask
from .errors import APIError
from .generation import priority_of, request_id_of
from .protocol.pooling import Input, PoolingBody
from .serving import Serving
from .sse import until_disconnect

Output = PoolingRequestOutput[PoolingOutput]
Prompts = list[tuple[EngineInput, PoolingParams]]


class PoolingCall:
    """One request on its way to its answer. inputs: what the model takes; common: what the answer begins with."""

    def __init__(self, body: PoolingBody, request: Request, what: str, id_prefix: str) -> None:
        """what: for whoever asks a model that generates. Raises APIError."""
        self.body, self.serving, self._request = body, _serving(request), request
        self.inputs: PoolingInputs = self.serving.pooling(what)
        self._priority = priority_of(body, request)
        self.common: dict[str, Any] = {
            "id": f"{id_prefix}-{request_id_of(body, request)}",
            "object": "list",
            "created": int(time.time()),
            "model": self.serving.model_name(body.model),
        }

    def params(self, task: PoolingTask | None = None, **given: Any) -> PoolingParams:
        """Of the request. Raises ValueError for what the model cannot do."""
        active = self.body.normalize if self.body.use_activation is None else self.body.use_activation
        params = PoolingParams(task=task, use_activation=active, **given)
        self.inputs.rules.complete(params)
        return params

    def check_texts(self, texts: Iterable[Any]) -> None:
        """Raises APIError for one that is too long, unless it is to be cut."""
        if self.body.truncate_prompt_tokens is None:
            for text in texts:
                if isinstance(text, str):
                    self.serving.check_text(text)

    async def outputs(self, count: int, prepare: Callable[[], Prompts]) -> list[Output]:
        """Of all that ``prepare`` makes in the tokenizer's thread; count: how many they are."""

        async def work() -> list[Output]:
            with self.serving.admit(count):
                return await self.serving.pooled(await self.serving.tokenizing(prepare), self._priority)

        try:
            return await until_disconnect(self._request.receive, work())
        except ExceptionGroup as errors:  # of the requests that ran beside each other
            raise errors.exceptions[0] from None

    def listed(self, given: Input) -> list[Any]:
        """Texts, or lists of tokens. Raises APIError for none, and for too many."""
        inputs: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
        most = self.serving.config.max_num_prompts
        if not 0 < len(inputs) <= most:
            raise APIError(400, f"`input`: {len(inputs)} inputs were given, and from 1 to {most} are taken at once", "input")
        self.check_texts(inputs)
        return inputs

    def usage(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """OpenAI's usage object."""
        tokens = sum(len(output.prompt_token_ids) for output in outputs)
        return self.serving.usage(tokens, 0, sum(output.num_cached_tokens for output in outputs))


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving
