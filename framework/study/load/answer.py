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
from typing import Any

import numpy as np

MAX_EVENT_BYTES = 1 << 22
"""Of an event that has not ended; the longest of real ones names a prompt's tokens."""
MAX_TOKENS = 10_000_000
"""Of an answer: a server that claims more does not count."""


class BadAnswer(ValueError):
    """A stream that says that it failed, or makes no sense."""


@dataclass(frozen=True)
class Tokens:
    """times_s: one per token; chunk_times_s: one per chunk that brought any; counted_by: see above."""

    times_s: array[float]
    chunk_times_s: array[float]
    counted_by: str


class Answer:
    """Takes in a stream as it comes. Chunks are columns: as a million objects, they would keep the garbage collector busy.

    finish_reason             None until the stream says it
    prompt_tokens, num_tokens  as the server's usage says at the end; None where it does not
    token_ids                 where the server gives them
    is_done                   the stream said that nothing follows
    texts                     of the chunks
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.num_tokens: int | None = None
        self.token_ids: array[int] = array("q")
        self.is_done = False
        self.texts: list[str] = []
        self._times = array("d")
        self._counts, self._usages = array("q"), array("q")  # tokens of the chunk, and so far; -1 where it does not say
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
        if not self.texts:
            raise BadAnswer("the stream brought no token")

    def tokens(self, count_tokens: Callable[[str], int] | None) -> Tokens:
        """When every token came. ``count_tokens``: of a text; None without a tokenizer."""
        counts, usages = np.asarray(self._counts), np.asarray(self._usages)
        # Tokens may have no text at all.
        chunks = np.array([i for i, text in enumerate(self.texts) if text] or range(len(self.texts))[-1:], dtype=int)
        if (counts[chunks] >= 0).all():
            chunks, counted_by = np.flatnonzero(counts >= 0), "logprobs" if self._by_logprobs else "token_ids"
            counts = counts[chunks]
        elif (usages[chunks] >= 0).all():
            chunks, counted_by = np.flatnonzero(usages >= 0), "usage"
            counts = np.diff(usages[chunks], prepend=0)
        else:
            counts, counted_by = self._by_text([self.texts[i] for i in chunks], count_tokens)
        times = np.asarray(self._times)[chunks]
        return Tokens(array("d", np.repeat(times, counts)), array("d", times[counts > 0]), counted_by)

    def _by_text(self, texts: Sequence[str], count_tokens: Callable[[str], int] | None) -> tuple[np.ndarray, str]:
        total = self.num_tokens
        if total == len(texts):
            return np.ones(len(texts), dtype=int), "usage"
        sizes = np.array([1 if count_tokens is None else max(1, count_tokens(text)) for text in texts])
        if total is not None:
            sizes = np.diff(np.rint(np.cumsum(sizes) * (total / sizes.sum())), prepend=0).astype(int)
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
            reasoning = delta.get("reasoning") or delta.get("reasoning_content")  # two names of the same, for some servers
            text = "".join(part for part in (choice.get("text"), reasoning, delta.get("content")) if part)
            count = -1
            if (ids := choice.get("token_ids")) is not None:
                count = len(ids)
                self.token_ids.extend(ids)
            elif logprobs := choice.get("logprobs"):
                count = len(logprobs["content"] if "content" in logprobs else logprobs["tokens"])
                self._by_logprobs = True
            if reason := choice.get("finish_reason"):
                self.finish_reason = str(reason)
            self._times.append(time_s)
            self.texts.append(text)
            self._counts.append(count)
            self._usages.append(self.num_tokens if usage and self.num_tokens is not None else -1)


def message_of(error: Any) -> str:
    """The words of an error object in any of its usual forms, at most 300 characters."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error.get("error") or error
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
