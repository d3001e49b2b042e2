"""What attention takes for rows, of those of a step, and which kernel takes them. No tensors: a simulator needs it too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .encoding import View

MAX_DECODE_TOKENS = 8
"""Rows with at most this many tokens at the front of a step, all of which have a cached prefix, run as decodes."""


def num_decodes(counts: np.ndarray, first: np.ndarray) -> int:
    """How many rows at the front of a step run as decodes. counts, first: int64 [R], tokens of each, and in the cache before it.
    A short row anywhere else would be the tail of a prompt, which prefill handles too."""
    is_decode = (counts <= MAX_DECODE_TOKENS) & (first > 0)
    return len(is_decode) if is_decode.all() else int(np.argmin(is_decode))


def seen_from(lengths: np.ndarray, sizes: np.ndarray | int, window: int) -> np.ndarray:
    """int64 [R]: the first token that canvases of ``sizes`` see within a window, which is that of their first token. lengths: int64
    [R], of sequences, which end with them."""
    return np.maximum(lengths - sizes - (window - 1), 0)


def canvas_rows(
    counts: np.ndarray, first: np.ndarray, canvas_size: int, causal: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same tokens, in rows that end with a canvas each, as far as they see, so that attention within them needs to know no
    order: int64 [R'] which of the rows each is of, counts, and first. causal: int64 [R], tokens of a sequence that see nothing
    behind them, and so are a row each."""
    row_of, bounds = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts) - counts
    places = np.arange(len(row_of)) + (first - bounds)[row_of]
    ends = np.where(places < causal[row_of], places + 1, (places // canvas_size + 1) * canvas_size)
    begins = np.flatnonzero(np.diff(row_of, prepend=-1) | np.diff(ends, prepend=0))
    return row_of[begins], np.diff(begins, append=len(places)), places[begins]


def encoded_rows(
    counts: np.ndarray, first: np.ndarray, lengths: np.ndarray, views: Sequence[Sequence[View]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same tokens, in rows cut where what they see of an encoder changes: at images in their prompts. lengths: int32 [R],
    vectors that generated tokens see; views: of each row, as ``EncoderInput`` has them. Returns int64 [S] which of the rows each is
    of, counts, and from which place of the request's vectors on its tokens see them; and int32 [S] how many."""
    if all(not own or begin >= own[-1].first for own, begin in zip(views, first.tolist())):
        return np.arange(len(counts)), counts, np.zeros(len(counts), dtype=np.int64), lengths
    parts = []
    for row, (own, begin, end) in enumerate(zip(views, first.tolist(), (first + counts).tolist())):
        seen = (_NOTHING, *own) if own else (View(0, 0, int(lengths[row])),)
        ends = [*(view.first for view in seen[1:]), end]
        for view, until in zip(seen, ends):
            start, until = max(begin, view.first), min(until, end)
            if start < until:
                parts.append((row, until - start, view.start, view.length))
    row_of, counts, starts, seen_lengths = np.array(parts, dtype=np.int64).T
    return row_of, counts, starts, seen_lengths.astype(np.int32)


_NOTHING = View(0, 0, 0)
