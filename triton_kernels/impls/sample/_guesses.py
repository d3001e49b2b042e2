"""Guesses of the keys between which the border of a row's kept tokens lies: from the best tokens of ``SETS`` sets of groups, which
alone may have what it takes (top-k, and top-p of peaked rows), or from a sample of SETS tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from ._keys import LAST_TOKEN, LEAST_KEY, MASS_ONE, load_groups, load_list, load_scores, sums_from, token_keys
from ._scan import GROUP_ONE


@triton.jit
def floor_of_sets(row, groups, by_mass, target, lower, SETS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """A key at and above which the best tokens of the sets alone reach the target; ``lower`` if there is none."""
    num_tokens, best = row[1], row[3]
    scores, _, first = load_groups(groups, GROUPS, GROUP)
    # The token is not known, but it is none behind the group.
    keys = token_keys(scores, tl.minimum(first + (GROUP - 1), num_tokens - 1))
    keys = tl.max(tl.reshape(keys, [GROUPS // SETS, SETS]), 0)
    scores = tl.max(tl.reshape(scores, [GROUPS // SETS, SETS]), 0)
    weights = tl.where(by_mass, tl.exp(scores - best) * MASS_ONE, tl.where(scores > float("-inf"), 1.0, 0.0))
    if tl.sum(weights, 0) >= target.to(tl.float32):
        sums = sums_from(keys, weights, tl.minimum(groups[1], SETS))
        lower = tl.maximum(lower, tl.max(tl.where(sums >= target.to(tl.float32), keys, LEAST_KEY), 0))
    return lower


@triton.jit
def sample_groups(row, groups, by_mass, turn, SETS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Of each set a token, drawn in proportion to its mass (or any token alike) -> keys, and the sets' masses, [SETS]."""
    num_tokens, best = row[1], row[3]
    scores, mass, first = load_groups(groups, GROUPS, GROUP)
    mass = mass.to(tl.float32) * tl.exp(scores - best) * (1 / GROUP_ONE)
    mass = tl.where(by_mass, mass, tl.where(first < num_tokens, 1.0, 0.0))
    mass = tl.reshape(mass, [GROUPS // SETS, SETS])
    first = tl.reshape(first, [GROUPS // SETS, SETS])
    sums, total = tl.cumsum(mass, 0), tl.sum(mass, 0)
    phase = (tl.arange(0, SETS) + turn * 977) * 0.6180339887
    goal = (phase - tl.floor(phase)) * total
    chosen = tl.min(tl.where(sums > goal[None, :], first, LAST_TOKEN), 0)
    rest = goal - tl.sum(tl.where(first == chosen[None, :], sums - mass, 0.0), 0)
    rest = tl.where(by_mass, rest, rest * GROUP)

    tokens = chosen[:, None] + tl.arange(0, GROUP)[None, :]
    scores = load_scores(row, tokens, chosen[:, None] < num_tokens)
    weights = tl.where(by_mass, tl.exp(scores - best), 1.0)
    token = tl.min(tl.where(tl.cumsum(weights, 1) > rest[:, None], tokens, chosen[:, None] + (GROUP - 1)), 1)
    score = tl.max(tl.where(tokens == token[:, None], scores, float("-inf")), 1)
    return tl.where((chosen < num_tokens) & (token < num_tokens), token_keys(score, token), LEAST_KEY), total


@triton.jit
def sample_list(row, list_ptr, num_listed, by_mass, turn, SETS: tl.constexpr):
    """Tokens evenly spaced in a list -> keys and masses [SETS]."""
    best = row[3]
    phase = turn * 0.6180339887
    at = ((tl.arange(0, SETS) + (phase - tl.floor(phase))) * (num_listed / SETS)).to(tl.int32)
    _, scores, keys = load_list(row, list_ptr, at, num_listed)
    return keys, tl.where(by_mass, tl.exp(scores - best), 1.0)


@triton.jit
def guess_interval(keys, weights, num, lower, upper, need, weight):
    """An interval of keys that the border is probably in, given a sample of the tokens in ``lower`` .. ``upper``, which weigh
    ``weight`` together, and what those above the border weigh, ``need``."""
    weights = tl.where((keys >= lower) & (keys < upper), weights, 0.0)
    shares = sums_from(keys, weights, num) / tl.maximum(tl.sum(weights, 0), 1e-30)
    share = tl.minimum(need.to(tl.float32) / tl.maximum(weight, 1.0), 1.0)
    error = 2.5 * tl.sqrt(share * (1 - share) / keys.shape[0]) + 2.0 / keys.shape[0]
    guessed = tl.max(tl.where((weights > 0) & (shares >= tl.minimum(share + error, 0.9999)), keys, lower), 0)
    return guessed, tl.min(tl.where((weights > 0) & (shares < share - error), keys, upper), 0)
