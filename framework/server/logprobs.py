"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..outputs import Logprob, LogprobsOnePosition

LEAST = -9999.0
"""Instead of minus infinity, which JSON has not."""


def completion_logprobs(
    token_ids: Sequence[int],
    found: Sequence[LogprobsOnePosition | None],
    offset: int,
    as_token_ids: bool,
    decode: Callable[[list[int]], str],
) -> tuple[dict[str, Any], int]:
    """As /v1/completions tells them, and the offset that follows.

    found   per token; None for the first of a prompt
    offset  of the first token, in characters of the text
    decode  the text of tokens: of those without an entry
    """
    tokens: list[str] = []
    offsets: list[int] = []
    own: list[float | None] = []
    top: list[dict[str, float] | None] = []
    for token_id, entry in zip(token_ids, found):
        if entry is None:
            text = f"token_id:{token_id}" if as_token_ids else decode([token_id])
        else:
            text = _text(token_id, entry[token_id], as_token_ids)
        tokens.append(text)
        offsets.append(offset)
        offset += len(text)
        own.append(None if entry is None else _number(entry[token_id]))
        top.append(None if entry is None else {_text(i, logprob, as_token_ids): _number(logprob) for i, logprob in entry.items()})
    return {"text_offset": offsets, "token_logprobs": own, "tokens": tokens, "top_logprobs": top}, offset


def chat_logprobs(
    token_ids: Sequence[int], found: Sequence[LogprobsOnePosition], num_top: int, as_token_ids: bool
) -> list[dict[str, Any]]:
    """As /v1/chat/completions and /v1/responses tell them, with the ``num_top`` best of each position."""
    content = []
    for token_id, entry in zip(token_ids, found):
        top = [(i, logprob) for i, logprob in entry.items() if logprob.rank is not None and logprob.rank <= num_top]
        top.sort(key=lambda pair: pair[1].rank or 0)
        own = _chat_entry(token_id, entry[token_id], as_token_ids)
        content.append({**own, "top_logprobs": [_chat_entry(i, logprob, as_token_ids) for i, logprob in top]})
    return content


def prompt_logprobs(found: Sequence[LogprobsOnePosition | None]) -> list[dict[str, Any] | None]:
    """As vLLM tells those of a prompt: token id -> log-probability, rank and text."""
    return [
        None
        if entry is None
        else {str(i): {"logprob": _number(p), "rank": p.rank, "decoded_token": p.decoded_token} for i, p in entry.items()}
        for entry in found
    ]


def _chat_entry(token_id: int, logprob: Logprob, as_token_ids: bool) -> dict[str, Any]:
    text = _text(token_id, logprob, as_token_ids)
    return {"token": text, "logprob": _number(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _text(token_id: int, logprob: Logprob, as_token_ids: bool) -> str:
    if as_token_ids or logprob.decoded_token is None:
        return f"token_id:{token_id}"
    return logprob.decoded_token


def _number(logprob: Logprob) -> float:
    return max(logprob.logprob, LEAST)
