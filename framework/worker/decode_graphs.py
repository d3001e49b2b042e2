"""Steps of decodes only, recorded once per batch size and replayed: the host launches one graph instead of every kernel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ..engine.attention_rows import MAX_DECODE_TOKENS
from ..models.batch import ForwardBatch, GroupBatch, StateBatch
from ..models.protocol import Model
from ..plan import AttentionMeta, LoraMeta, StateMeta
from .batches import Batches
from .devices import Capture, Replay
from .request_rows import RequestRows
from .step_rows import StepRows
from .transfer import packed_bytes, packed_views, to_device

Workspaces = list[dict[str, Any]]
"""What kernels keep between calls, per KV group."""


class DecodeRows:
    """The rows of a step, in buffers that recordings read: of up to ``size`` of them seats and first int64, lengths int32, as in
    StepRows but exact, lora_slots int32, encoded int32 as ``RequestRows.num_encoded``, deltas int64 as ``Images.deltas``, and
    tables int32 [groups, size, blocks]. Rows beyond the step's are padding: they belong to the padding seat, have length 0, no
    adapter, and write nowhere, so they touch nothing."""

    def __init__(self, requests: RequestRows, size: int, deltas: np.ndarray | None = None) -> None:
        self.requests, self._deltas, device = requests, deltas, requests.device
        dtypes = [torch.int64] * 3 + [torch.int32] * 3
        self._like = [torch.empty(size, dtype=dtype, device="meta") for dtype in dtypes]
        self._inputs = torch.zeros(packed_bytes(self._like), dtype=torch.uint8, device=device)
        views = packed_views(self._inputs, self._like)
        self.seats, self.first, self.deltas, self.lengths, self.lora_slots, self.encoded = views
        self.seats.fill_(requests.padding_seat)
        self.lora_slots.fill_(-1)
        num_groups, _, width = requests.tables.shape
        self.tables = torch.zeros(num_groups, size, width, dtype=torch.int32, device=device)

    def fill(self, rows: StepRows) -> None:
        """Takes in the rows of a step. The blocks of the drafts that are made behind them are there, too."""
        requests, count = self.requests, len(rows.seats)
        host = torch.zeros(self._inputs.shape, dtype=torch.uint8, pin_memory=not self._inputs.is_cpu)
        seats, first, deltas, lengths, lora_slots, encoded = packed_views(host, self._like)
        seats[:count], seats[count:] = torch.from_numpy(rows.seats), requests.padding_seat
        first[:count] = torch.from_numpy(rows.first)
        if self._deltas is not None:
            deltas[:count] = torch.from_numpy(self._deltas[rows.seats])
        lengths[:count] = torch.from_numpy(rows.lengths)
        lora_slots[:count], lora_slots[count:] = torch.from_numpy(requests.lora_slots[rows.seats]), -1
        num_encoded = requests.num_encoded[rows.seats]
        encoded[:count] = torch.from_numpy(num_encoded)
        self._inputs.copy_(host, non_blocking=True)
        if requests.computed is not None:
            exact = requests.computed[self.seats[:count]]
            self.lengths[:count] += (exact - self.first[:count]).int()
            self.first[:count] = exact
        width = requests.table_width(max(int(rows.lengths.max()) + requests.num_drafts, int(num_encoded.max())))
        tables = to_device(requests.tables[:, rows.seats, :width], self.tables.device)
        self.tables[:, :count, :width].copy_(tables, non_blocking=True)

    def build(
        self, batches: Batches, size: int, query_len: int, workspaces: Workspaces, max_seq_len: int, has_lora: bool = False
    ) -> Callable[[torch.Tensor, torch.Tensor], ForwardBatch]:
        """What ``batches.build`` is in a recording of ``size`` rows, from first int64 and lengths int32 [size]: the batch has the
        last ``query_len`` tokens of each, and writes those from ``first`` on. has_lora: whether rows may have adapters."""
        device, tokens, ahead, caches = self.seats.device, self.requests.tokens, batches.ahead, batches.caches
        cu_q = torch.arange(0, size * query_len + 1, query_len, dtype=torch.int32, device=device)
        back = torch.arange(-query_len, 0, device=device)
        row_seats, tables = self.seats[:size], list(self.tables[batches.groups, :size])
        row_slots, padding_seat = self.lora_slots[:size], self.requests.padding_seat
        encoded, most_encoded = self.encoded[:size], self.requests.max_encoded
        is_first = torch.zeros(size, dtype=torch.bool, device=device)
        deltas = None if self._deltas is None else self.deltas[:size, None].expand(size, query_len)

        def build(first: torch.Tensor, lengths: torch.Tensor) -> ForwardBatch:
            if query_len == 1:
                positions, seats = first, row_seats
            else:
                positions = (lengths[:, None] + back).clamp_min_(0).flatten()
                seats = row_seats[:, None].expand(size, query_len).reshape(-1)
            computed = (positions.view(size, query_len) < first[:, None]).flatten() if query_len > 1 else None
            token_ids = tokens[seats, positions + ahead if ahead else positions]
            parts = []
            for group, (table, workspace) in enumerate(zip(tables, workspaces)):
                blind = None
                if group in batches.cross:
                    slots, seen, most = positions[:0], encoded, most_encoded
                    blind = (encoded == 0)[:, None].expand(size, query_len).reshape(-1, 1)
                else:
                    slots, seen, most = batches.slot_mapping(positions, cu_q, lengths, table), lengths, max_seq_len
                    if computed is not None:
                        slots.masked_fill_(computed, -1)
                meta = AttentionMeta(cu_q, seen, table, query_len, most, workspace)
                parts.append(GroupBatch(slots, meta, None, blind=blind))
            lora = LoraMeta(row_slots[:, None].expand(size, query_len).contiguous().view(-1)) if has_lora else None
            states = None
            if batches.states:
                rows = row_seats.int().masked_fill_(row_seats == padding_seat, -1)
                states = StateBatch(StateMeta(cu_q, rows, is_first, query_len), batches.states)
            if deltas is not None:
                positions = (positions.view(size, query_len) + deltas).flatten()
            return ForwardBatch(token_ids, positions, size * query_len, parts, caches, row_seats[:0], lora=lora, states=states)

        return build


class Recorder:
    """Makes recordings of functions of ``rows``, one per batch size and number of tokens of a row.

    ``capture`` records a function and returns its replay; the largest are captured first, so that the others fit into their memory.
    Recordings point at what functions and kernels keep between calls: these live as long as they do, also what of a workspace a
    later one outgrew.
    """

    def __init__(self, rows: DecodeRows, sizes: Iterable[int], capture: Capture) -> None:
        self.rows, self.sizes, self._capture = rows, sorted(set(sizes)), capture
        self._held: list[Any] = []

    def record(
        self, function_of: Callable[[int, int], Replay], query_lens: Iterable[int], workspaces: Workspaces
    ) -> dict[tuple[int, int], Replay]:
        """(size, query_len) -> the replay of ``function_of`` them."""
        replays = {}
        for query_len in sorted(set(query_lens), reverse=True):
            for size in reversed(self.sizes):
                function = function_of(size, query_len)
                replays[size, query_len] = self._capture(function)
                self._held += [function, *(kept for workspace in workspaces for kept in workspace.values())]
        return replays

    def size(self, count: int) -> int:
        """Of the smallest recording that holds so many rows."""
        return self.sizes[bisect_left(self.sizes, count)]


class DecodeGraphs:
    """Recordings of the model, from slots in the cache to logits: per batch size and number of tokens of a row (1, more where
    drafts are checked); of a model with adapters for steps that have none and for steps that have some. A step takes the smallest
    that holds its rows. A row with fewer tokens than the recording computes those before them again, and writes only its own."""

    def __init__(
        self,
        model: Model,
        batches: Batches,
        batch_sizes: list[int],
        capture: Capture,
        query_lens: Iterable[int] = (1,),
        most_padding: float | None = None,
    ) -> None:
        """most_padding: as ``Device.most_padding``."""
        self._most_padding, self._lora_slots = most_padding, batches.lora_slots
        self.query_lens = sorted(n for n in set(query_lens) if n <= MAX_DECODE_TOKENS)
        deltas = None if batches.images is None else batches.images.deltas
        self.recorder = Recorder(DecodeRows(batches.rows, max(batch_sizes), deltas), batch_sizes, capture)
        self._rows = self.recorder.rows
        workspaces: Workspaces = [{} for _ in batches.rows.tables]
        self._replays = {
            has_lora: self.recorder.record(
                _model_step(model, batches, self._rows, workspaces, has_lora), self.query_lens, workspaces
            )
            for has_lora in ((True, False) if batches.has_lora else (False,))
        }

    def fits(self, rows: StepRows, ahead: int = 0) -> bool:
        """Whether every row decodes one token, or has drafts checked, and there are no more than the largest recording holds. A row
        that wants no logits is the middle of a prompt, however short: its hidden state may be wanted. ahead: how much more than
        there are the lengths may say."""
        num_rows, longest = len(rows.seats), int(rows.counts.max())
        if num_rows > self.recorder.sizes[-1] or longest > self.query_lens[-1]:
            return False
        if self._most_padding is not None and longest > 1:
            num_tokens = int(rows.bounds[-1])
            if self.recorder.size(num_rows) * self._query_len(longest) > (1 + self._most_padding) * num_tokens:
                return False
        return bool((rows.counts == rows.num_logits).all()) and int(rows.first.min()) - ahead >= self._query_len(longest)

    def run(self, rows: StepRows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a step's tokens, logits [R', V] and hidden states [R', H]; and the hidden states as the recording left them, of all
        rows' last tokens: [size, query_len, H]. Valid until another recording runs, which has its memory."""
        count, query_len = len(rows.seats), self._query_len(int(rows.counts.max()))
        size = self.recorder.size(count)
        self._rows.fill(rows)
        logits, hidden = self._replays[self._lora_slots(rows) is not None][size, query_len]()
        num_tokens, recorded = int(rows.bounds[-1]), hidden.unflatten(0, (size, query_len))
        if num_tokens == count * query_len:
            return logits[:num_tokens], hidden[:num_tokens], recorded
        ends = query_len * np.arange(1, count + 1)
        wanted = to_device(ends[rows.logit_rows] - rows.num_logits[rows.logit_rows] + rows.nth_logit, logits.device)
        return logits[wanted], hidden[wanted], recorded

    def _query_len(self, longest: int) -> int:
        return self.query_lens[bisect_left(self.query_lens, longest)]


def _model_step(
    model: Model, batches: Batches, rows: DecodeRows, workspaces: Workspaces, has_lora: bool
) -> Callable[[int, int], Replay]:
    """(size, query_len) -> the function to record: logits [size * query_len, V] and hidden states of ``rows``. It does not hold
    DecodeGraphs, which holds its replay: a cycle would keep the model and its cache on the device until the garbage collector comes
    by."""

    def function_of(size: int, query_len: int) -> Replay:
        build = rows.build(batches, size, query_len, workspaces, model.max_model_len, has_lora)
        first, lengths = rows.first[:size], rows.lengths[:size]

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            batch = build(first, lengths)
            model.begin_step(batch)
            hidden = model.forward(batch)
            return model.logits(hidden, batch.lora), hidden

        return step

    return function_of
