"""Exact min-p, top-k and top-p of one row, without a sort: which token is the last that is kept.

The kept tokens are those with a key (``_keys.py``) of at least the border's. A search keeps the border between two keys, ``lower``
<= border < ``upper``, and alternates two things until ``SETS`` tokens are left, which are ranked against each other. It guesses a
narrower interval: first from the best tokens of SETS sets of groups, then from samples. And it splits: one pass adds up what lies
above and in the guessed interval, and lists the tokens in it, in which the search goes on. A wrong guess costs a pass, never a
token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.float_key import float_key
from ._guesses import floor_of_sets, guess_interval, sample_groups, sample_list
from ._keys import (
    LEAST_KEY,
    MOST_KEY,
    at_least,
    end_of_keys,
    load_groups,
    load_list,
    load_scores,
    share_of,
    sums_from,
    token_keys,
    token_mass,
)

_MAX_GUESSES, _MAX_TURNS = tl.constexpr(8), tl.constexpr(8 + 64)


@triton.jit
def list_groups(groups, lower, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Lists the groups that may hold keys of at least ``lower``, behind scores and masses; returns the list and its length."""
    groups_ptr, num_groups = groups
    list_ptr = groups_ptr + 2 * num_groups
    scores, _, first = load_groups(groups, GROUPS, GROUP)
    listed = (first < num_groups * GROUP) & (token_keys(scores, first) >= lower)
    in_rows = tl.reshape(listed.to(tl.int32), [GROUPS // 8, 8])
    sums = tl.cumsum(tl.sum(in_rows, 1), 0)
    places = tl.reshape((sums - tl.sum(in_rows, 1))[:, None] + tl.cumsum(in_rows, 1), [GROUPS])
    zero = (lower == MOST_KEY).to(
        tl.int32
    ) * 4  # without it the compiler keeps all numbers of groups in registers during the search
    tl.store(list_ptr + places - 1, first // GROUP + zero, mask=listed)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return list_ptr, tl.max(sums, 0)


@triton.jit
def _listed_tokens(list_ptr, num_listed, start, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUPED: tl.constexpr):
    """Tokens [ROWS, WIDTH] of listed groups of WIDTH tokens, from place ``start`` on, or listed tokens, WIDTH to a row, from row
    ``start`` on; negative beyond the end of the list."""
    rows = start + tl.arange(0, ROWS)
    if GROUPED:
        units = tl.load(list_ptr + rows, mask=rows < num_listed, other=-1)
        tokens = units[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    else:
        at = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        tokens = tl.load(list_ptr + at, mask=at < num_listed, other=-1)
    return tokens


@triton.jit
def load_part(row, list_ptr, num_listed, start, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUPED: tl.constexpr):
    """``_listed_tokens``, their scores, and which of them exist, [ROWS, WIDTH]."""
    tokens = _listed_tokens(list_ptr, num_listed, start, ROWS, WIDTH, GROUPED)
    valid = (tokens >= 0) & (tokens < row[1])
    return tokens, load_scores(row, tokens, valid), valid


@triton.jit
def _weigh(row, list_ptr, num_listed, start, between, guess, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUPED: tl.constexpr):
    """Which tokens [ROWS, WIDTH] of a part are in the guessed interval, and per row the number and mass of those in it and of those
    above it."""
    lower, upper = guess
    tokens, scores, valid = load_part(row, list_ptr, num_listed, start, ROWS, WIDTH, GROUPED)
    at_least_upper = at_least(scores, tokens, upper)
    above = valid & at_least_upper & (at_least(scores, tokens, between) == 0)
    inside = valid & at_least(scores, tokens, lower) & (at_least_upper == 0)
    mass = token_mass(scores, row[3])
    mass_above, mass_inside = tl.sum(tl.where(above, mass, 0), 1), tl.sum(tl.where(inside, mass, 0), 1)
    return inside, tl.sum(inside.to(tl.int32), 1), mass_inside, tl.sum(above.to(tl.int32), 1), mass_above


@triton.jit
def _list(out_ptr, inside, before, list_ptr, num_listed, start, GROUPED: tl.constexpr, ROOM: tl.constexpr):
    """Lists which tokens of a part are inside, each row's from place ``before`` on. They are loaded again: to keep those of a whole
    tile would take more registers than there are."""
    tokens = _listed_tokens(list_ptr, num_listed, start, inside.shape[0], inside.shape[1], GROUPED)
    places = before[:, None] + tl.cumsum(inside.to(tl.int32), 1) - 1
    tl.store(out_ptr + places, tokens, mask=inside & (places < ROOM))


@triton.jit
def _split(
    row,
    list_ptr,
    num_listed,
    out_ptr,
    between,
    guess,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPED: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Number and mass of the listed tokens with keys above the guessed interval and below ``between``, then of those in it, which
    it lists in ``out_ptr``, as far as there is room."""
    num_above, num_inside = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    mass_above, mass_inside = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    ROWS: tl.constexpr = TILE // WIDTH // 4
    num_rows = num_listed if GROUPED else tl.cdiv(num_listed, WIDTH)
    for a in tl.range(0, num_rows, 4 * ROWS, disable_licm=True):  # in four parts, which take fewer registers than the whole tile
        b, c, d = a + ROWS, a + 2 * ROWS, a + 3 * ROWS
        in_a, num_a, mass_a, above_a, mass_above_a = _weigh(row, list_ptr, num_listed, a, between, guess, ROWS, WIDTH, GROUPED)
        in_b, num_b, mass_b, above_b, mass_above_b = _weigh(row, list_ptr, num_listed, b, between, guess, ROWS, WIDTH, GROUPED)
        in_c, num_c, mass_c, above_c, mass_above_c = _weigh(row, list_ptr, num_listed, c, between, guess, ROWS, WIDTH, GROUPED)
        in_d, num_d, mass_d, above_d, mass_above_d = _weigh(row, list_ptr, num_listed, d, between, guess, ROWS, WIDTH, GROUPED)
        in_rows = num_a + num_b + num_c + num_d
        before = num_inside + tl.cumsum(in_rows, 0) - in_rows
        _list(out_ptr, in_a, before, list_ptr, num_listed, a, GROUPED, ROOM)
        _list(out_ptr, in_b, before + num_a, list_ptr, num_listed, b, GROUPED, ROOM)
        _list(out_ptr, in_c, before + num_a + num_b, list_ptr, num_listed, c, GROUPED, ROOM)
        _list(out_ptr, in_d, before + num_a + num_b + num_c, list_ptr, num_listed, d, GROUPED, ROOM)
        num_inside += tl.sum(in_rows, 0)
        mass_inside += tl.sum(mass_a + mass_b + mass_c + mass_d, 0)
        num_above += tl.sum(above_a + above_b + above_c + above_d, 0)
        mass_above += tl.sum(mass_above_a + mass_above_b + mass_above_c + mass_above_d, 0)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return num_above, mass_above, num_inside, mass_inside


@triton.jit
def find_border(
    row,
    groups,
    mass,
    top_k,
    top_p,
    min_p,
    SETS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    SURVIVORS: tl.constexpr,
):
    """Which tokens of a row are kept: all with keys of at least ``upper``, and those with keys of at least ``lower`` of a list.
    ``mass`` is the row's. Returns lower, upper, the list, its length (at most SETS), and whether any key is at least ``upper``."""
    groups_ptr, num_groups = groups
    lists_ptr = groups_ptr + 3 * num_groups
    num_tokens, best = row[1], row[3]
    bottom = tl.where(min_p > 0, best + tl.log(tl.where(min_p > 0, min_p, 1.0)), float("-inf"))
    lower, upper = float_key(bottom).to(tl.int64) << 32, end_of_keys(best)
    limited = (top_k > 0) & (top_k < num_tokens)
    nucleus = top_p < 1
    num_open = num_tokens
    num_above, mass_above = tl.zeros([], tl.int32), tl.zeros([], tl.int64)
    side, num_listed = 0, -1  # no list yet
    num_sets = tl.minimum(num_groups, SETS)
    for criterion in tl.range(1 - limited.to(tl.int32), 1 + nucleus.to(tl.int32), disable_licm=True):
        by_mass = criterion == 1
        num_listed = tl.where(num_above == 0, num_listed, -1)  # what lies above is in no list
        upper = end_of_keys(best)
        num_above, mass_above = tl.zeros([], tl.int32), tl.zeros([], tl.int64)
        mass_open = mass.to(tl.float32)
        target = tl.where(by_mass, share_of(mass, top_p), top_k.to(tl.int64))
        # What min-p leaves is measured before the first guess.
        first = tl.where((min_p > 0) & ((criterion == 0) | (limited == 0)), -1, 0)
        for turn in tl.range(first, _MAX_TURNS, disable_licm=True):
            if (num_listed < 0) | (num_listed > SETS):
                need = target - tl.where(by_mass, mass_above, num_above.to(tl.int64))
                guess_lower, guess_upper = lower, upper
                list_ptr = lists_ptr + side * 3 * SURVIVORS
                if (num_open > SETS) & (turn >= 0):
                    if turn == 0:
                        guess_lower = floor_of_sets(row, groups, by_mass, target, lower, SETS, GROUPS, GROUP)
                    elif turn < _MAX_GUESSES:
                        if num_listed < 0:
                            keys, weights = sample_groups(row, groups, by_mass, turn, SETS, GROUPS, GROUP)
                        else:
                            keys, weights = sample_list(row, list_ptr, num_listed, by_mass, turn, SETS)
                        weight = tl.where(by_mass, mass_open, num_open.to(tl.float32))
                        guess_lower, guess_upper = guess_interval(
                            keys, weights, tl.where(num_listed < 0, num_sets, SETS), lower, upper, need, weight
                        )
                    if (turn > 0) & (guess_lower == lower) & (guess_upper == upper):
                        guess_lower = (lower >> 1) + (upper >> 1) + (lower & upper & 1)
                if (turn != 0) | (guess_lower > lower) | (num_open <= SETS):
                    out_side = tl.where(num_listed < 0, 0, 1 - side)
                    out_ptr = lists_ptr + out_side * 3 * SURVIVORS
                    guess = (guess_lower, guess_upper)
                    if num_listed < 0:
                        group_list_ptr, num_listed_groups = list_groups(groups, guess_lower, GROUPS, GROUP)
                        above, mass_here, inside, mass_inside = _split(
                            row, group_list_ptr, num_listed_groups, out_ptr, upper, guess, TILE, GROUP, True, 3 * SURVIVORS
                        )
                    else:
                        above, mass_here, inside, mass_inside = _split(
                            row, list_ptr, num_listed, out_ptr, upper, guess, TILE // 2, 8, False, SURVIVORS
                        )
                    if turn < 0:
                        target = tl.where(by_mass, share_of(mass_inside, top_p), target)
                        need = target
                    below = tl.where(guess_lower == lower, 0, num_open - above - inside)
                    reach_above = tl.where(by_mass, mass_here, above.to(tl.int64))
                    reach_inside = reach_above + tl.where(by_mass, mass_inside, inside.to(tl.int64))
                    if (reach_inside < need) & (below > 0):
                        upper = guess_lower
                        num_above += above + inside
                        mass_above += mass_here + mass_inside
                        mass_open = tl.maximum(mass_open - (mass_here + mass_inside).to(tl.float32), 0.0)
                        num_open = below
                    elif (reach_above >= need) | (inside == 0):
                        lower = guess_upper
                        mass_open, num_open = mass_here.to(tl.float32), above
                    else:
                        lower, upper = guess_lower, guess_upper
                        num_above += above
                        mass_above += mass_here
                        mass_open, num_open = mass_inside.to(tl.float32), inside
                        if inside <= tl.where(num_listed < 0, 3 * SURVIVORS, SURVIVORS):
                            side, num_listed = out_side, inside
        need = target - tl.where(by_mass, mass_above, num_above.to(tl.int64))
        _, scores, keys = load_list(row, lists_ptr + side * 3 * SURVIVORS, tl.arange(0, SETS), num_listed)
        is_open = (keys >= lower) & (keys < upper)
        masses = tl.where(is_open, token_mass(scores, best), 0)
        sums = sums_from(keys, tl.where(by_mass, masses, is_open.to(tl.int64)), num_listed)
        last = tl.min(tl.where(is_open, keys, MOST_KEY), 0)
        lower = tl.maximum(tl.max(tl.where(is_open & (sums >= need), keys, LEAST_KEY), 0), last)
        kept = is_open & (keys >= lower)
        mass = mass_above + tl.sum(tl.where(kept, masses, 0), 0)
        num_open = num_above + tl.sum(kept.to(tl.int32), 0)
    searched = limited | nucleus
    upper = tl.where(searched, upper, lower)
    return lower, upper, lists_ptr + side * 3 * SURVIVORS, tl.maximum(num_listed, 0), (num_above > 0) | (searched == 0)
