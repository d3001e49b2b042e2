"""Made-up traces in place of files that are not at hand: seeded, with the statistics of the public ones (of which no request is
copied). Lengths follow the quantiles of the real ones, interpolated between their logarithms; request i does not depend on how
many follow.

Azure (AzureLLMInferenceTrace_conv, 19,366 requests in 3,502 s), the real trace and the mean of 20 stand-ins of as many requests:
    prompt tokens, mean                  1155   1187
    output tokens, mean                   211    212
    requests per s                       5.53   5.52 (a seed's hour differs by 0.7, as the rate wanders)
    per minute, deviation / mean         0.22   0.20
    per second, deviation / mean         0.50   0.47
    gaps, deviation / mean               1.09   1.04

Mooncake (conversation_trace, 12,031 requests in 3,537 s), likewise of 4:
    prompt tokens, mean                 12035  11976
    prompts of more than 8k, 32k  0.45 / 0.07  0.42 / 0.08
    output tokens, mean                   343    338
    requests that go on with another's   0.39   0.35
    prompt tokens that came before       0.37   0.40, found in a cache of the last 1k, 5k, 20k, 50k blocks
                         0.05 0.11 0.29 0.36   0.05 0.14 0.33 0.39
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from .traces import MOONCAKE_BLOCK_TOKENS, TraceEntry

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def azure(num_requests: int | None, rng: np.random.Generator) -> list[TraceEntry]:
    """Prompt and output lengths that do not depend on each other; a Poisson process whose rate wanders: its logarithm is an
    Ornstein-Uhlenbeck process."""
    gap_s, spread, forgets_s = 0.1808, 0.22, 300.0
    num_requests = 19_366 if num_requests is None else num_requests
    lengths, gaps, rates = rng.spawn(3)
    draws = lengths.random((num_requests, 2))
    prompts = _lengths(draws[:, 0], (2, 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 14050))
    outputs = _lengths(draws[:, 1], (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000))
    keeps, level, time_s = np.exp(-gap_s / forgets_s), spread * rates.standard_normal(), 0.0
    entries = []
    for i, gap in enumerate(gaps.standard_exponential(num_requests) * gap_s * np.exp(-(spread**2) / 2)):
        entries.append(TraceEntry(time_s, prompts[i], outputs[i]))
        time_s += float(gap * np.exp(-level))
        level = keeps * level + spread * np.sqrt(1 - keeps**2) * rates.standard_normal()
    return entries


def mooncake(num_requests: int | None, rng: np.random.Generator) -> list[TraceEntry]:
    """Conversations: a request begins one, or goes on with an earlier request's prompt, its answer, and something new. All begin
    with one block; requests come in bunches every 3 s, as in the file."""
    every_s, gap_s, goes_on, longest, most_new = 3.0, 0.294, 0.387, 126_000, 60_000
    num_requests = 12_031 if num_requests is None else num_requests
    draws = rng.random((num_requests, 6))
    first = _lengths(draws[:, 1], (891, 892, 897, 905, 1336, 5264, 13056, 25559, 38494, 89868, 126195))
    new = _lengths(draws[:, 2], (1, 1, 2, 4, 9, 25, 425, 4256, 7041, 16871, most_new))
    outputs = _lengths(draws[:, 3], (1, 3, 10, 24, 157, 350, 472, 597, 698, 1119, 2000))
    waits_s = _at(draws[:, 4], (1, 12, 30, 42, 66, 123, 264, 483, 615, 1477, 3030))
    gaps_s = -np.log1p(-draws[:, 5]) * gap_s
    times = np.floor((np.cumsum(gaps_s) - gaps_s[0]) / every_s) * every_s
    entries: list[TraceEntry] = []
    last: list[int] = []  # requests with which nobody went on yet
    num_blocks = 1
    for i, time_s in enumerate(times.tolist()):
        size = first[i]
        shared: tuple[int, ...] = (0,)
        if draws[i, 0] < goes_on and last:
            before = entries[last.pop(max(0, bisect_right(last, time_s - waits_s[i], key=times.__getitem__) - 1))]
            assert before.num_prompt_tokens is not None and before.num_output_tokens is not None and before.block_ids is not None
            longer = before.num_prompt_tokens + before.num_output_tokens + new[i]
            if longer <= longest:
                size, shared = longer, before.block_ids[: max(1, len(before.block_ids) - 1)]  # the last one was not full
        own = -(-size // MOONCAKE_BLOCK_TOKENS) - len(shared)
        blocks = (*shared, *range(num_blocks, num_blocks + own))
        num_blocks += own
        entries.append(TraceEntry(time_s, size, outputs[i], blocks))
        last.append(i)
    return entries


def _at(draws: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Uniform draws -> values of the distribution with these QUANTILES."""
    return np.exp(np.interp(draws, QUANTILES, np.log(values)))


def _lengths(draws: np.ndarray, values: Sequence[float]) -> list[int]:
    return np.rint(_at(draws, values)).astype(int).tolist()


STAND_INS: dict[str, Callable[[int | None, np.random.Generator], list[TraceEntry]]] = {"azure": azure, "mooncake": mooncake}
"""Form of a trace -> its stand-in: ``num_requests`` entries, None = as many as the file has."""
