"""The rows of a step as what an encoder gave is seen by them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine.attention_rows import encoded_rows
from .request_rows import RequestRows
from .step_rows import StepRows


@dataclass(frozen=True)
class EncodedRows:
    """As ``attention_rows.encoded_rows`` cuts them.

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
        views = [requests.views.get(seat, ()) for seat in rows.seats.tolist()]
        row, counts, starts, lengths = encoded_rows(rows.counts, rows.first, requests.num_encoded[rows.seats], views)
        return cls(row, counts, starts, lengths, int((row < num_decodes).sum()))

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
