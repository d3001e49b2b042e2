"""A streamed answer: server-sent events to tokens and when they came.

How many tokens a chunk brought is taken from the first of these that the answer has, and ``counted_by`` says which:

    token_ids  the ids of the chunk (vLLM and we give them when asked by return_token_ids)
    logprobs   the log-probabilities, one per token
    usage      the running count of a server that sends it with every chunk; or where its final count is the number of chunks
    text       the chunk's text, tokenized; brought to the final count, where the server gives one, in proportion
    chunks     nothing of all that: a chunk is a token

Tokens of a chunk came at once: the gaps between them are zero, as they are between the tokens of one speculative step.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MAX_EVENT_BYTES = 1 << 22
"""Of an event that has not ended; the longest of real ones names a prompt's tokens."""
MAX_TOKENS = 10_000_000
"""Of an answer: a server that claims more does not count."""
_DELTA_TEXTS = ("reasoning_content", "reasoning", "content")


class BadAnswer(ValueError):
    """A stream that says that it failed, or makes no sense."""


class Chunk(NamedTuple):
    """A part of the answer. num_tokens: as its ids or log-probabilities say; usage: tokens so far; None where it does not say."""

    time_s: float
    text: str
    num_tokens: int | None
    usage: int | None


@dataclass(frozen=True)
class Tokens:
    """times_s: one per token; chunk_times_s: one per chunk that brought any; counted_by: see above."""

    times_s: array[float]
    chunk_times_s: array[float]
    counted_by: str


class Answer:
    """Takes in a stream as it comes.

    finish_reason             None until the stream says it
    prompt_tokens, num_tokens  as the server's usage says at the end; None where it does not
    token_ids                 where the server gives them
    is_done                   the stream said that nothing follows
    """

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.num_tokens: int | None = None
        self.token_ids: array[int] = array("q")
        self.is_done = False
        self._by_logprobs = False
        self._rest, self._data = b"", list[bytes]()

    def feed(self, data: bytes, time_s: float) -> None:
        """Takes in what came at ``time_s``: any part of the stream. Raises BadAnswer for an error that the server reports, and for
        what is no such stream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadAnswer(f"an event of more than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:])
            elif not line:
                self._end_event(time_s)

    def close(self, time_s: float) -> None:
        """The stream ended at ``time_s``. Raises BadAnswer if the answer did not."""
        self.feed(b"\n\n", time_s)  # the last event may lack its empty line
        if not self.is_done and self.finish_reason is None:
            raise BadAnswer("the stream ended before the answer did")
        if not self.chunks:
            raise BadAnswer("the stream brought no token")

    def tokens(self, count_tokens: Callable[[str], int] | None) -> Tokens:
        """When every token came. ``count_tokens``: of a text; None without a tokenizer."""
        chunks = [chunk for chunk in self.chunks if chunk.text] or self.chunks[-1:]  # tokens may have no text at all
        if all(chunk.num_tokens is not None for chunk in chunks):
            chunks, counted_by = self.chunks, "logprobs" if self._by_logprobs else "token_ids"
            counts = [chunk.num_tokens or 0 for chunk in chunks]
        elif all(chunk.usage is not None for chunk in chunks):
            chunks, counted_by = [chunk for chunk in self.chunks if chunk.usage is not None], "usage"
            counts = np.diff([chunk.usage or 0 for chunk in chunks], prepend=0).tolist()
        else:
            counts, counted_by = self._by_text([chunk.text for chunk in chunks], count_tokens)
        times, chunk_times = array("d"), array("d")
        for chunk, count in zip(chunks, counts):
            times.extend([chunk.time_s] * count)
            if count:
                chunk_times.append(chunk.time_s)
        return Tokens(times, chunk_times, counted_by)

    def _by_text(self, texts: Sequence[str], count_tokens: Callable[[str], int] | None) -> tuple[list[int], str]:
        total = self.num_tokens
        if total == len(texts):
            return [1] * len(texts), "usage"
        sizes = [1 if count_tokens is None else max(1, count_tokens(text)) for text in texts]
        if total is not None:
            sizes = np.diff(np.rint(np.cumsum(sizes) * (total / sum(sizes))), prepend=0).astype(int).tolist()
        return sizes, "chunks" if count_tokens is None else "text"

    def _end_event(self, time_s: float) -> None:
        if not self._data:
            return
        data, self._data = b"\n".join(self._data).strip(), []
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            self._take(json.loads(data), time_s)
        except BadAnswer:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise BadAnswer(f"malformed event ({type(error).__name__}): {data[:200]!r}") from error

    def _take(self, event: dict[str, Any], time_s: float) -> None:
        if error := event.get("error"):
            raise BadAnswer(f"the server reported an error: {message_of(error)}")
        usage = event.get("usage")
        if usage:
            num_tokens, self.prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
            if not (self.num_tokens or 0) <= num_tokens <= MAX_TOKENS:
                raise ValueError("completion_tokens")
            self.num_tokens = num_tokens
        for choice in event["choices"][:1]:
            delta = choice.get("delta") or {}
            text = "".join(part for part in (choice.get("text"), *map(delta.get, _DELTA_TEXTS)) if part)
            count = None
            if (ids := choice.get("token_ids")) is not None:
                count = len(ids)
                self.token_ids.extend(ids)
            elif logprobs := choice.get("logprobs"):
                count = len(logprobs["content"] if "content" in logprobs else logprobs["tokens"])
                self._by_logprobs = True
            if reason := choice.get("finish_reason"):
                self.finish_reason = str(reason)
            self.chunks.append(Chunk(time_s, text, count, self.num_tokens if usage else None))


def message_of(error: Any) -> str:
    """The words of an error object in any of its usual forms, at most 300 characters."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error.get("error") or error
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
