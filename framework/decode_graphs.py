"""Steps of decodes only, recorded once per batch size and replayed: the host launches one graph instead of every kernel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import torch

from .forward_batch import ForwardBatch, GroupBatch
from .models.protocol import Model
from .plan import AttentionMeta, LayerKV
from .request_rows import RequestRows
from .transfer import to_device

Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


class DecodeGraphs:
    """One recording of the model, from token ids to logits, per batch size; a step takes the smallest that holds its rows.

    Inputs lie in buffers that all recordings read. Rows beyond the step's are padding: they belong to the padding slot, have length
    0 and write nowhere, so they touch nothing. ``capture`` records a function and returns its replay; sizes are captured from the
    largest down, so that the smaller ones fit into the memory of the largest.
    """

    def __init__(self, model: Model, caches: list[LayerKV], rows: RequestRows, block_size: int, batch_sizes: list[int],
                 capture: Capture) -> None:  # fmt: skip
        self._rows, self._block_size, self._sizes = rows, block_size, sorted(set(batch_sizes))
        largest, device = self._sizes[-1], rows.device
        self._slots = torch.full((largest,), rows.padding_slot, dtype=torch.int64, device=device)
        self._positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(largest, dtype=torch.int32, device=device)
        self._mappings = [torch.full((largest,), -1, dtype=torch.int64, device=device) for _ in rows.tables]
        self._tables = [torch.zeros(largest, table.shape[1], dtype=torch.int32, device=device) for table in rows.tables]
        self._cu_q = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._replays: dict[int, Callable[[], torch.Tensor]] = {}
        for size in reversed(self._sizes):
            self._replays[size] = capture(self._step_of(model, caches, size))

    def fits(self, counts: np.ndarray, first: np.ndarray) -> bool:
        """Whether every row decodes one token, and there are no more than the largest recording holds."""
        return len(counts) <= self._sizes[-1] and bool((counts == 1).all()) and bool((first > 0).all())

    def run(self, slots: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Logits [R, V] of the tokens at ``positions`` of ``slots``; valid until the next run."""
        count = len(slots)
        size = self._sizes[bisect_left(self._sizes, count)]
        padding = size - count
        self._fill(self._slots, np.pad(slots, (0, padding), constant_values=self._rows.padding_slot))
        self._fill(self._positions, np.pad(positions, (0, padding)))
        self._fill(self._lengths, np.pad(positions + 1, (0, padding)).astype(np.int32))
        for table, device_table, mapping in zip(self._rows.tables, self._tables, self._mappings):
            width = int(positions.max()) // self._block_size + 1
            blocks = table[slots, :width]
            self._fill(device_table[:, :width], np.pad(blocks, ((0, padding), (0, 0))))
            own = table[slots, positions // self._block_size].astype(np.int64) * self._block_size + positions % self._block_size
            self._fill(mapping, np.pad(own, (0, padding), constant_values=-1))
        return self._replays[size]()[:count]

    def _fill(self, buffer: torch.Tensor, values: np.ndarray) -> None:
        buffer[: len(values)].copy_(to_device(values, buffer.device), non_blocking=True)

    def _step_of(self, model: Model, caches: list[LayerKV], size: int) -> Callable[[], torch.Tensor]:
        """The function to record: reads the buffers, returns logits [size, V]."""
        metas = [
            AttentionMeta(self._cu_q[: size + 1], self._lengths[:size], table[:size], 1, model.max_model_len)
            for table in self._tables
        ]
        groups = [GroupBatch(mapping[:size], meta, None) for mapping, meta in zip(self._mappings, metas)]
        positions = self._positions[:size]

        def step() -> torch.Tensor:
            batch = ForwardBatch(self._rows.tokens[self._slots[:size], positions], positions, size, groups, self._slots[:0])
            model.begin_step(batch)
            return model.logits(model.forward(batch, caches))

        return step


class CudaGraphCapture:
    """Records functions as CUDA (or HIP) graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and allocates workspaces before recording
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay
