"""What the filters of a row compare: every token's key of 64 bits, its score before its negated id, so that no two are equal.

A row is (pointer to its logits, their number, temperature, best score); its groups are (pointer to what the scan left of them,
their number). Masses are integers, 2^40 for the best token, so that nothing depends on the order of a sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.float_key import float_key, key_float
from ._scan import GROUP_ONE
from ._scores import load_logits, scores_of

MASS_ONE = tl.constexpr(float(1 << 40))
LEAST_KEY, MOST_KEY = tl.constexpr(-(2**63)), tl.constexpr(2**63 - 1)
LAST_TOKEN = tl.constexpr(0x7FFFFFFF)
_MINUS_INFINITY = tl.constexpr(-0x800000)
"""The bits of -inf."""


@triton.jit
def token_keys(scores, tokens):
    """int64 keys in the order in which filters keep tokens: by score, equal scores by token, the lowest first."""
    return (float_key(scores).to(tl.int64) << 32) + (tokens ^ LAST_TOKEN)


@triton.jit
def end_of_keys(best):
    """A key above all of a row whose best score is ``best``."""
    return (float_key(best).to(tl.int64) + 1) << 32


@triton.jit
def at_least(scores, tokens, key):
    """Which tokens have keys of at least ``key``; takes fewer registers than their keys."""
    low = key & 0xFFFFFFFF
    score = key_float((key >> 32).to(tl.int32))
    return (scores > score) | ((scores == score) & (tokens <= (low ^ LAST_TOKEN).to(tl.int32)))


@triton.jit
def token_mass(scores, best):
    return (tl.exp(scores - best) * MASS_ONE).to(tl.int64)


@triton.jit
def share_of(mass, top_p):
    return tl.maximum(tl.ceil(mass.to(tl.float64) * top_p).to(tl.int64), 1)


@triton.jit
def load_scores(row, tokens, valid):
    logits_ptr, num_tokens, temperature = row[:3]
    return scores_of(load_logits(logits_ptr, tokens, valid & (tokens < num_tokens)), temperature)


@triton.jit
def load_groups(groups, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Best scores, masses (2^24 for the best score) and first tokens of the row's groups, [GROUPS]."""
    groups_ptr, num_groups = groups
    at = tl.arange(0, GROUPS)
    # The same numbers again, in a form that costs a register per four of them while the search runs.
    first = tl.reshape(4 * GROUP * tl.arange(0, GROUPS // 4)[:, None] + GROUP * tl.arange(0, 4)[None, :], [GROUPS])
    scores = tl.load(groups_ptr + at, mask=at < num_groups, other=_MINUS_INFINITY).to(tl.float32, bitcast=True)
    return scores, tl.load(groups_ptr + num_groups + at, mask=at < num_groups, other=0), first


@triton.jit
def row_mass(group_best, group_mass, best):
    weights = group_mass.to(tl.float32) * tl.exp(group_best - best) * (MASS_ONE / GROUP_ONE)
    return tl.sum(weights.to(tl.int64), 0)


@triton.jit
def load_list(row, list_ptr, at, num_listed):
    """Tokens, scores and keys at places ``at`` of a list of tokens; beyond its end the least key."""
    listed = at < num_listed
    tokens = tl.load(list_ptr + at, mask=listed, other=0)
    scores = load_scores(row, tokens, listed)
    return tokens, scores, tl.where(listed, token_keys(scores, tokens), LEAST_KEY)


@triton.jit
def sums_from(keys, weights, num):
    """What each key and the larger ones weigh together; only the first ``num`` weigh anything."""
    sums = tl.zeros_like(weights)
    for start in range(0, num, 16):  # few at a time: all pairs do not fit into registers
        at = start + tl.arange(0, 16)
        others = tl.gather(keys, at, 0)[None, :] >= keys[:, None]
        sums += tl.sum(tl.where(others, tl.gather(weights, at, 0)[None, :], 0), 1)
    return sums
