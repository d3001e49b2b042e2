"""Where what comes from the engine's process waits for whoever asked, in their event loop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from .engine.prompts import EngineInput
from .outputs import CompletionOutput, RequestOutput
from .pooling_params import PoolingParams
from .sampling_params import RequestOutputKind, SamplingParams


class Reply:
    """To one call."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def put(self, item: Any) -> None:
        if self.future.done():
            return  # the caller was cancelled
        if isinstance(item, Exception):
            self.future.set_exception(item)
        else:
            self.future.set_result(item)


class Stream:
    """Outputs of one request.

    Cumulative outputs travel as deltas and are put together here, when somebody asks: sent whole they would cost the engine's
    process, and the memory of whoever falls behind, the square of their length.

    params  made ready for the engine, which is asked for deltas
    prompt  set before the first output can come
    """

    key = ""

    def __init__(self, request_id: str, params: SamplingParams | PoolingParams) -> None:
        self.loop = asyncio.get_running_loop()
        self.request_id = request_id
        self.prompt: EngineInput | None = None
        self.finished = False
        self._items: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self._total: RequestOutput | None = None
        if isinstance(params, SamplingParams) and params.output_kind is RequestOutputKind.CUMULATIVE:
            params.output_kind = RequestOutputKind.DELTA
            self._total = _nothing_yet(params)

    def put(self, item: RequestOutput | Exception) -> None:
        self._items.put_nowait(item)

    async def get(self) -> RequestOutput:
        """The next output; raises what ended the request instead."""
        output = self._accept(await self._items.get())
        if self._total is not None:
            _add(self._total, output)
            while not self._items.empty():
                _add(self._total, self._accept(self._items.get_nowait()))
            output = _snapshot(self._total)
        assert self.prompt is not None
        output.request_id, output.prompt, output.prompt_token_ids = self.request_id, self.prompt.text, self.prompt.token_ids
        return output

    def _accept(self, item: RequestOutput | Exception) -> RequestOutput:
        if isinstance(item, Exception):
            self.finished = True
            raise item
        self.finished = item.finished
        if item.refused:
            raise ValueError(item.error)
        if item.error is not None:
            raise RuntimeError(f"the request {self.request_id!r} failed: {item.error}")
        return item


def _nothing_yet(params: SamplingParams) -> RequestOutput:
    wanted = params.logprobs is not None
    completions = [CompletionOutput(i, "", [], 0.0 if wanted else None, [] if wanted else None) for i in range(params.n)]
    return RequestOutput("", None, [], None, completions, finished=False)


def _add(total: RequestOutput, delta: RequestOutput) -> None:
    for new in delta.outputs:
        known = total.outputs[new.index]
        known.text += new.text
        known.token_ids += new.token_ids
        if known.logprobs is not None:
            known.logprobs += new.logprobs or ()
            known.cumulative_logprob = new.cumulative_logprob
        known.finish_reason, known.stop_reason = new.finish_reason, new.stop_reason
    total.prompt_logprobs = delta.prompt_logprobs or total.prompt_logprobs
    total.finished, total.num_cached_tokens, total.metrics = delta.finished, delta.num_cached_tokens, delta.metrics


def _snapshot(total: RequestOutput) -> RequestOutput:
    """A copy that later deltas do not change."""
    completions = [
        replace(c, token_ids=list(c.token_ids), logprobs=None if c.logprobs is None else list(c.logprobs)) for c in total.outputs
    ]
    return replace(total, outputs=completions)
