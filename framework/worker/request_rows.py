"""What the runner knows of each request between steps: one permanent row, from its first step until it is released."""

from __future__ import annotations

import numpy as np
import torch

from ..engine.step import StepInput
from .transfer import to_device

TABLE_COLUMNS = 16
"""Block tables are a multiple of it wide: kernels are compiled for the divisibility of addresses and strides, and so that of a
table and of its rows is the same in every step."""


class RequestRows:
    """Tokens on the device, block tables and counters on the host.

    tokens             int64 [slots + 1, max_model_len + 1] on the device: sampled tokens are written here and the next step reads
                       its inputs from here, so that nothing waits for the host. The last row belongs to padding.
    tables             int32 [KV groups, slots + 1, ``table_width`` of the longest sequence]
    num_computed       int64 [slots + 1]: tokens in the cache
    num_prompt_tokens  int64 [slots + 1]
    """

    def __init__(self, num_slots: int, max_model_len: int, num_groups: int, block_size: int, device: torch.device) -> None:
        self.device, self.padding_slot = device, num_slots
        self.tokens = torch.zeros(num_slots + 1, max_model_len + 1, dtype=torch.int64, device=device)
        self.block_size = block_size
        self.tables = np.zeros((num_groups, num_slots + 1, self.table_width(max_model_len)), dtype=np.int32)
        self._num_blocks = [np.zeros(num_slots + 1, dtype=np.int64) for _ in range(num_groups)]
        self.num_computed = np.zeros(num_slots + 1, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(num_slots + 1, dtype=np.int64)

    def table_width(self, num_tokens: int) -> int:
        """Columns that hold the blocks of ``num_tokens`` tokens."""
        return -(-num_tokens // (self.block_size * TABLE_COLUMNS)) * TABLE_COLUMNS

    def apply(self, step: StepInput) -> None:
        """Takes in the deltas of a step: released rows, new requests, further blocks."""
        for slot in step.released:
            for counts in self._num_blocks:
                counts[slot] = 0
        for request in step.new:
            ids = np.asarray(request.token_ids, dtype=np.int64)
            self.tokens[request.slot, : len(ids)] = to_device(ids, self.device)
            self.num_computed[request.slot] = request.num_computed_tokens
            self.num_prompt_tokens[request.slot] = request.num_prompt_tokens
            for group, blocks in enumerate(request.block_ids):
                self._num_blocks[group][request.slot] = 0
                self._append(request.slot, group, blocks)
        for slot, group, blocks in step.new_blocks:
            self._append(slot, group, blocks)

    def _append(self, slot: int, group: int, blocks: list[int]) -> None:
        start = self._num_blocks[group][slot]
        self.tables[group, slot, start : start + len(blocks)] = blocks
        self._num_blocks[group][slot] = start + len(blocks)
