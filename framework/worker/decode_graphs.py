"""Steps of decodes only, recorded once per batch size and replayed: the host launches one graph instead of every kernel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..models.batch import ForwardBatch, GroupBatch
from ..models.protocol import Model
from ..plan import AttentionMeta, BoundKernel, LayerKV
from .devices import Capture, Replay
from .request_rows import RequestRows
from .step_rows import StepRows
from .transfer import packed_bytes, packed_views, to_device


class DecodeGraphs:
    """One recording of the model, from slots in the cache to logits, per batch size and number of tokens of a row (1, more where
    drafts are checked); a step takes the smallest that holds its rows.

    Inputs lie in buffers that all recordings read. Rows beyond the step's are padding: they belong to the padding seat, have length
    0 and write nowhere, so they touch nothing. A row with fewer tokens than the recording computes those before them again, and
    writes only its own. ``capture`` records a function and returns its replay; the largest are captured first, so that the others
    fit into their memory. Recordings point at what kernels keep between calls: one workspace per group, shared by all, whose
    content lives as long as they do, also where a later one outgrew it.
    """

    def __init__(
        self,
        model: Model,
        caches: list[LayerKV],
        rows: RequestRows,
        slot_mapping: BoundKernel,
        batch_sizes: list[int],
        capture: Capture,
        query_lens: Iterable[int] = (1,),
    ) -> None:
        self._rows, self._slot_mapping, self._sizes = rows, slot_mapping, sorted(set(batch_sizes))
        self._query_lens = sorted(set(query_lens))
        largest, device = self._sizes[-1], rows.device
        self._like = [torch.empty(largest, dtype=dtype, device="meta") for dtype in (torch.int64, torch.int64, torch.int32)]
        self._inputs = torch.zeros(packed_bytes(self._like), dtype=torch.uint8, device=device)
        self._seats, self._first, self._lengths = packed_views(self._inputs, self._like)
        self._seats.fill_(rows.padding_seat)
        num_groups, _, width = rows.tables.shape
        self._tables = torch.zeros(num_groups, largest, width, dtype=torch.int32, device=device)
        self._cu_q = {n: torch.arange(0, largest * n + 1, n, dtype=torch.int32, device=device) for n in self._query_lens}
        self._back = {n: torch.arange(-n, 0, device=device) for n in self._query_lens}
        self._workspaces: list[dict[str, Any]] = [{} for _ in range(num_groups)]
        self._replays: dict[tuple[int, int], Replay] = {}
        self._held: list[Any] = []
        for query_len in reversed(self._query_lens):
            for size in reversed(self._sizes):
                self._replays[size, query_len] = capture(self._step_of(model, caches, size, query_len))
                self._held += [kept for workspace in self._workspaces for kept in workspace.values()]

    def fits(self, rows: StepRows, ahead: int = 0) -> bool:
        """Whether every row decodes one token, or has drafts checked, and there are no more than the largest recording holds. A row
        that wants no logits is the middle of a prompt, however short: its hidden state may be wanted. ahead: how much more than
        there are the lengths may say."""
        num_rows, longest = len(rows.seats), int(rows.counts.max())
        if num_rows > self._sizes[-1] or longest > self._query_lens[-1]:
            return False
        return bool((rows.counts == rows.num_logits).all()) and int(rows.first.min()) - ahead >= self._query_len(longest)

    def run(self, rows: StepRows) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [R', V] and hidden states [R', H] of a step's tokens; valid until the next run."""
        count = len(rows.seats)
        size = self._sizes[bisect_left(self._sizes, count)]
        query_len = self._query_len(int(rows.counts.max()))
        self._fill(rows, count)
        logits, hidden = self._replays[size, query_len]()
        num_tokens = int(rows.bounds[-1])
        if num_tokens == count * query_len:
            return logits[:num_tokens], hidden[:num_tokens]
        ends = query_len * np.arange(1, count + 1)
        wanted = to_device(ends[rows.logit_rows] - rows.num_logits[rows.logit_rows] + rows.nth_logit, self._inputs.device)
        return logits[wanted], hidden[wanted]

    def _query_len(self, longest: int) -> int:
        return self._query_lens[bisect_left(self._query_lens, longest)]

    def _fill(self, rows: StepRows, count: int) -> None:
        host = torch.zeros(self._inputs.shape, dtype=torch.uint8, pin_memory=not self._inputs.is_cpu)
        seats, first, lengths = packed_views(host, self._like)
        seats[:count], seats[count:] = torch.from_numpy(rows.seats), self._rows.padding_seat
        first[:count] = torch.from_numpy(rows.first)
        lengths[:count] = torch.from_numpy(rows.lengths)
        self._inputs.copy_(host, non_blocking=True)
        if self._rows.computed is not None:
            exact = self._rows.computed[self._seats[:count]]
            self._lengths[:count] += (exact - self._first[:count]).int()
            self._first[:count] = exact
        width = self._rows.table_width(int(rows.lengths.max()))
        tables = to_device(self._rows.tables[:, rows.seats, :width], self._tables.device)
        self._tables[:, :count, :width].copy_(tables, non_blocking=True)

    def _step_of(self, model: Model, caches: list[LayerKV], size: int, query_len: int) -> Replay:
        """The function to record: reads the buffers, returns logits [size * query_len, V] and hidden states. It does not hold
        ``self``, which holds its replay: a cycle would keep the model and its cache on the device until the garbage collector comes
        by."""
        request_rows, slot_mapping, row_seats = self._rows, self._slot_mapping, self._seats[:size]
        cu_q, first, lengths = self._cu_q[query_len][: size + 1], self._first[:size], self._lengths[:size]
        back = self._back[query_len]
        metas = [
            AttentionMeta(cu_q, lengths, table[:size], query_len, model.max_model_len, workspace)
            for table, workspace in zip(self._tables, self._workspaces)
        ]

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            if query_len == 1:
                positions, seats = first, row_seats
            else:
                positions = (lengths[:, None] + back).clamp_min_(0).flatten()
                seats = row_seats[:, None].expand(size, query_len).reshape(-1)
            slots = [slot_mapping(positions, cu_q, lengths, meta.block_table) for meta in metas]
            if query_len > 1:
                computed = (positions.view(size, query_len) < first[:, None]).flatten()
                for slot in slots:
                    slot.masked_fill_(computed, -1)
            token_ids = request_rows.tokens[seats, positions]
            groups = [GroupBatch(slot, meta, None) for slot, meta in zip(slots, metas)]
            batch = ForwardBatch(token_ids, positions, size * query_len, groups, caches, row_seats[:0])
            model.begin_step(batch)
            hidden = model.forward(batch)
            return model.logits(hidden), hidden

        return step
