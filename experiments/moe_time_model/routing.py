"""How many tokens each expert gets: the distributions of the measurements (NVIDIA's aiconfigurator), and that of vLLM's tuning."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
DRAWS = 5
"""Of a random distribution; the measured times are means over ten."""


def expert_counts(distribution: str, num_tokens: int, num_experts: int, top_k: int, num_ranks: int) -> list[Counts]:
    """Tokens per expert [num_experts] in each draw; the first ``num_experts / num_ranks`` experts are those that were timed: for
    ``power_law_ALPHA`` those of the rank with the most tokens. ``uniform``: all experts are as likely."""
    if distribution == "balanced":
        return [_balanced(num_tokens, num_experts, top_k)]
    draws = [np.random.default_rng([num_tokens, num_experts, top_k, draw]) for draw in range(DRAWS)]
    if distribution == "uniform":
        return [_uniform(random, num_tokens, num_experts, top_k) for random in draws]
    alpha = float(distribution.rpartition("_")[2])
    return [_power_law(random, alpha, num_tokens, num_experts, top_k, num_ranks) for random in draws]


def _balanced(num_tokens: int, num_experts: int, top_k: int) -> Counts:
    """Choice i of token t is expert t + i * stride; few tokens are spread over a stride."""
    stride = math.ceil(num_experts / top_k)
    first = np.arange(num_tokens) * (1 if num_tokens >= stride else stride / num_tokens)
    chosen = (first[:, None] + stride * np.arange(top_k)).astype(np.int64) % num_experts
    return np.bincount(chosen.ravel(), minlength=num_experts)


def _uniform(random: np.random.Generator, num_tokens: int, num_experts: int, top_k: int) -> Counts:
    chosen = random.random((num_tokens, num_experts)).argpartition(top_k - 1, axis=1)[:, :top_k]
    return np.bincount(chosen.ravel(), minlength=num_experts)


def _power_law(random: np.random.Generator, alpha: float, num_tokens: int, num_experts: int, top_k: int, num_ranks: int) -> Counts:
    """Popularities from a bounded power law, rounded to whole tokens, of which no expert gets more than there are; what is lacking
    or too much falls to the ranks in turn, there to the expert with the fewest or the most."""
    least, most = (1.0, 0.8 * num_tokens) if num_tokens * top_k > num_experts else (0.01, 2.0)
    power = 1 - alpha
    popularity = ((most**power - least**power) * random.random(num_experts) + least**power) ** (1 / power)
    counts = np.minimum(np.rint(popularity / popularity.sum() * num_tokens * top_k).astype(np.int64), num_tokens)
    ranks, turn = counts.reshape(num_ranks, -1), 0
    while lacking := np.sign(num_tokens * top_k - counts.sum()):
        rank = ranks[turn % num_ranks]
        expert = rank.argmin() if lacking > 0 else rank.argmax()
        rank[expert] += lacking * (0 <= rank[expert] + lacking <= num_tokens)
        turn += 1
    return np.roll(ranks, -int(ranks.sum(1).argmax()), axis=0).ravel()
