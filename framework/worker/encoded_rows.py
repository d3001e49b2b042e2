"""The rows of a step as what an encoder gave is seen by them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine.encoding import View
from .request_rows import RequestRows
from .step_rows import StepRows

_NOTHING = View(0, 0, 0)


@dataclass(frozen=True)
class EncodedRows:
    """Rows cut where what their tokens see changes: at images in their prompts.

    row      int64 [S]: of the step
    counts   int64 [S]: tokens
    starts   int64 [S]: places in the request's part of the cache from which on they see, where blocks begin
    lengths  int32 [S]: vectors that they see
    num_decodes  of the first rows, those that are of the step's decodes
    """

    row: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    num_decodes: int

    @classmethod
    def of(cls, requests: RequestRows, rows: StepRows, num_decodes: int) -> EncodedRows:
        """num_decodes: of the rows of the step, the first."""
        lengths = requests.num_encoded[rows.seats]
        views = [requests.views.get(seat, ()) for seat in rows.seats.tolist()]
        if all(not own or first >= own[-1].first for own, first in zip(views, rows.first.tolist())):
            count = len(rows.seats)
            return cls(np.arange(count), rows.counts, np.zeros(count, dtype=np.int64), lengths, num_decodes)
        parts = []
        for row, (own, first, end) in enumerate(zip(views, rows.first.tolist(), rows.lengths.tolist())):
            seen = (_NOTHING, *own) if own else (View(0, 0, int(lengths[row])),)
            ends = [*(view.first for view in seen[1:]), end]
            for view, until in zip(seen, ends):
                begin, until = max(first, view.first), min(until, end)
                if begin < until:
                    parts.append((row, until - begin, view.start, view.length))
        row, counts, starts, seen_lengths = np.array(parts, dtype=np.int64).T
        return cls(row, counts, starts, seen_lengths.astype(np.int32), int((row < num_decodes).sum()))

    @property
    def bounds(self) -> np.ndarray:
        """int32 [S + 1]: where the tokens of each begin."""
        return np.concatenate(([0], np.cumsum(self.counts))).astype(np.int32)

    def tables(self, requests: RequestRows, seats: np.ndarray, groups: list[int]) -> np.ndarray:
        """int32 [groups, S, blocks] of what they see. seats: of the step's rows."""
        width = requests.table_width(max(int((self.starts + self.lengths).max()), 1))
        tables = requests.tables[groups][:, seats[self.row], :width]
        if not self.starts.any():
            return tables
        columns = np.arange(width) + self.starts[:, None] // requests.block_size
        found = np.take_along_axis(tables, np.minimum(columns, width - 1)[None], axis=2)
        return found * (columns < width)
