"""The sampling contract written a second time, in float64 and for one row at a time: what the engine's tokens are tested against.

Nothing here comes from the engine or the kernels. Order: bitmask (allowed ids, stop tokens before min_tokens), bad words, bias,
repetition, frequency and presence, temperature, min-p, top-k, top-p, Gumbel-max with Philox 4x32-10 noise (Salmon et al., SC 2011).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from framework.sampling_params import SamplingParams

FAILED = -1


@dataclass(frozen=True)
class Choice:
    """The token of a row, FAILED if no token is possible; and every token that wins when scores and borders move by the slack."""

    token: int
    possible: frozenset[int]


def philox(seed: int, c0: np.ndarray, c1: int, c2: int, c3: int) -> np.ndarray:
    """uint32 [len(c0), 4]: Philox 4x32-10 under the key ``seed`` (its low 64 bits) at the counters (c0, c1, c2, c3)."""
    mask = np.uint64(0xFFFFFFFF)
    x0 = c0.astype(np.uint64)
    x1, x2, x3 = (np.full_like(x0, word) for word in (c1, c2, c3))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        high0, low0 = np.divmod(x0 * np.uint64(0xD2511F53), np.uint64(2**32))
        high1, low1 = np.divmod(x2 * np.uint64(0xCD9E8D57), np.uint64(2**32))
        x0, x1, x2, x3 = high1 ^ x1 ^ np.uint64(k0), low1, high0 ^ x3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (np.stack([x0, x1, x2, x3], axis=1) & mask).astype(np.uint32)


def gumbel_noise(seed: int, position: int, num_tokens: int, stream: int = 0) -> np.ndarray:
    """f64 [num_tokens]: -log(-log1p(-u)), u from word ``token & 3`` at the counter (token >> 2, position, stream)."""
    words = philox(seed, np.arange(-(-num_tokens // 4)), position & 0xFFFFFFFF, position >> 32, stream).reshape(-1)[:num_tokens]
    signed = words.view(np.int32)
    positive = np.where(signed < 0, -(signed.astype(np.int64)) - 1, signed)
    u = np.maximum(positive.astype(np.float32) * np.float32(4.6566127342e-10), np.float32(4.66e-10)).astype(np.float64)
    return -np.log(-np.log1p(-u))


def banned_by_words(words: Sequence[Sequence[int]], output: Sequence[int]) -> Iterator[int]:
    """Tokens that would complete a bad word, all of whose other tokens were generated."""
    for word in words:
        before = list(word[:-1])
        if len(before) <= len(output) and list(output[len(output) - len(before) :]) == before:
            yield word[-1]


def scores_of(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    stop_ids: Sequence[int],
    bad_words: Sequence[Sequence[int]],
) -> np.ndarray:
    """Raw logits [V] -> f64 [V] after masks, bias and penalties, before the temperature."""
    scores = np.array(logits, dtype=np.float64)
    if params.allowed_token_ids is not None:
        allowed = np.zeros(len(scores), dtype=bool)
        allowed[params.allowed_token_ids] = True
        scores[~allowed] = -np.inf
    if len(output) < params.min_tokens:
        scores[list(stop_ids)] = -np.inf
    scores[list(banned_by_words(bad_words, output))] = -np.inf
    for token, value in (params.logit_bias or {}).items():
        scores[token] += value
    for token in {*prompt, *output}:
        scores[token] = (
            scores[token] / params.repetition_penalty if scores[token] > 0 else scores[token] * params.repetition_penalty
        )
    for token in set(output):
        scores[token] -= params.frequency_penalty * list(output).count(token) + params.presence_penalty
    return scores


def num_kept(ranked: np.ndarray, params: SamplingParams, slack: float) -> int:
    """How many of the scores [V], best first, survive min-p, top-k and top-p when each border moves by ``slack``; at least 1."""
    kept = np.isfinite(ranked)
    if params.min_p > 0:
        kept &= ranked >= ranked[0] + np.log(params.min_p) - slack
    if 0 < params.top_k < len(ranked):
        if slack > 0:
            kept &= ranked >= ranked[params.top_k - 1] - slack
        else:
            kept &= (np.arange(len(ranked)) < params.top_k) & ((ranked > ranked[params.top_k] - slack) | (slack == 0))
    kept[0] = True
    if params.top_p < 1:
        probability = np.where(kept, np.exp(ranked - ranked[0]), 0.0)
        probability /= probability.sum()
        kept &= np.cumsum(probability) - probability < params.top_p + slack
    return max(1, int(kept.sum()))


def choose(scores: np.ndarray, params: SamplingParams, seed: int, position: int, error: float) -> Choice:
    """The token at ``position``, the absolute index of the token to be sampled. error: how far a logit may be from the truth."""
    if not np.isfinite(scores.max()):
        return Choice(FAILED, frozenset())
    if params.temperature == 0:
        close = np.flatnonzero(scores >= scores.max() - 2 * error)
        return Choice(int(np.argmax(scores)), frozenset(close.tolist()))
    scores = scores / params.temperature
    slack = 2 * error / params.temperature
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    noisy = ranked + gumbel_noise(seed, position, len(scores))[order]
    fewest, kept, most = (num_kept(ranked, params, moved) for moved in (-slack, 0.0, slack))
    close = order[:most][noisy[:most] >= noisy[:fewest].max() - slack]
    return Choice(int(order[np.argmax(noisy[:kept])]), frozenset(close.tolist()))
