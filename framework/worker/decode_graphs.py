"""Steps of decodes only, recorded once per batch size and replayed: the host launches one graph instead of every kernel."""

from __future__ import annotations

from bisect import bisect_left
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
    """One recording of the model, from slots in the cache to logits, per batch size; a step takes the smallest that holds its rows.

    Inputs lie in buffers that all recordings read. Rows beyond the step's are padding: they belong to the padding seat, have length
    0 and write nowhere, so they touch nothing. ``capture`` records a function and returns its replay; sizes are captured from the
    largest down, so that the smaller ones fit into the memory of the largest. Recordings point at what kernels keep between calls:
    one workspace per group, shared by all sizes, whose content lives as long as they do, also where a later size outgrew it.
    """

    def __init__(
        self,
        model: Model,
        caches: list[LayerKV],
        rows: RequestRows,
        slot_mapping: BoundKernel,
        batch_sizes: list[int],
        capture: Capture,
    ) -> None:
        self._rows, self._slot_mapping, self._sizes = rows, slot_mapping, sorted(set(batch_sizes))
        largest, device = self._sizes[-1], rows.device
        self._like = [torch.empty(largest, dtype=dtype, device="meta") for dtype in (torch.int64, torch.int64, torch.int32)]
        self._inputs = torch.zeros(packed_bytes(self._like), dtype=torch.uint8, device=device)
        self._seats, self._positions, self._lengths = packed_views(self._inputs, self._like)
        self._seats.fill_(rows.padding_seat)
        num_groups, _, width = rows.tables.shape
        self._tables = torch.zeros(num_groups, largest, width, dtype=torch.int32, device=device)
        self._cu_q = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._workspaces: list[dict[str, Any]] = [{} for _ in range(num_groups)]
        self._replays: dict[int, Replay] = {}
        self._held: list[Any] = []
        for size in reversed(self._sizes):
            self._replays[size] = capture(self._step_of(model, caches, size))
            self._held += [kept for workspace in self._workspaces for kept in workspace.values()]

    def fits(self, rows: StepRows) -> bool:
        """Whether every row decodes one token, and there are no more than the largest recording holds. A row that does not sample
        is the middle of a prompt, however short: its logits are nobody's, and its hidden state may be wanted."""
        num_rows = len(rows.seats)
        if num_rows > self._sizes[-1] or len(rows.sampled) < num_rows:
            return False
        return bool((rows.counts == 1).all()) and bool((rows.first > 0).all())

    def run(self, seats: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Logits [R, V] of the tokens at ``positions`` of ``seats``; valid until the next run."""
        count = len(seats)
        size = self._sizes[bisect_left(self._sizes, count)]
        host = torch.zeros(self._inputs.shape, dtype=torch.uint8, pin_memory=not self._inputs.is_cpu)
        own_seats, own_positions, lengths = packed_views(host, self._like)
        own_seats[:count], own_seats[count:] = torch.from_numpy(seats), self._rows.padding_seat
        own_positions[:count] = torch.from_numpy(positions)
        lengths[:count] = torch.from_numpy(positions + 1)
        self._inputs.copy_(host, non_blocking=True)
        width = self._rows.table_width(int(positions.max()) + 1)
        tables = to_device(self._rows.tables[:, seats, :width], self._tables.device)
        self._tables[:, :count, :width].copy_(tables, non_blocking=True)
        return self._replays[size]()[:count]

    def _step_of(self, model: Model, caches: list[LayerKV], size: int) -> Replay:
        """The function to record: reads the buffers, returns logits [size, V]. It does not hold ``self``, which holds its replay: a
        cycle would keep the model and its cache on the device until the garbage collector comes by."""
        rows, slot_mapping, seats = self._rows, self._slot_mapping, self._seats[:size]
        cu_q, positions, lengths = self._cu_q[: size + 1], self._positions[:size], self._lengths[:size]
        metas = [
            AttentionMeta(cu_q, lengths, table[:size], 1, model.max_model_len, workspace)
            for table, workspace in zip(self._tables, self._workspaces)
        ]

        def step() -> torch.Tensor:
            groups = [GroupBatch(slot_mapping(positions, cu_q, lengths, meta.block_table), meta, None) for meta in metas]
            batch = ForwardBatch(rows.tokens[seats, positions], positions, size, groups, caches, seats[:0])
            model.begin_step(batch)
            return model.logits(model.forward(batch))

        return step
