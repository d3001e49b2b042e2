"""What the runner knows of each request between steps: one permanent row, from its first step until it is released."""

from __future__ import annotations

import numpy as np
import torch

from .step import StepInput
from .transfer import to_device


class RequestRows:
    """Tokens on the device, block tables and counters on the host.

    tokens             int64 [slots + 1, max_model_len + 1] on the device: sampled tokens are written here and the next step reads
                       its inputs from here, so that nothing waits for the host. The last row belongs to padding.
    tables             per KV group int32 [slots + 1, max_blocks]
    num_computed       int64 [slots + 1]: tokens in the cache
    num_prompt_tokens  int64 [slots + 1]
    """

    def __init__(self, num_slots: int, max_model_len: int, num_groups: int, block_size: int, device: torch.device) -> None:
        self.device, self.padding_slot = device, num_slots
        self.tokens = torch.zeros(num_slots + 1, max_model_len + 1, dtype=torch.int64, device=device)
        max_blocks = -(-max_model_len // block_size)
        self.tables = [np.zeros((num_slots + 1, max_blocks), dtype=np.int32) for _ in range(num_groups)]
        self._num_blocks = [np.zeros(num_slots + 1, dtype=np.int64) for _ in range(num_groups)]
        self.num_computed = np.zeros(num_slots + 1, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(num_slots + 1, dtype=np.int64)

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
        self.tables[group][slot, start : start + len(blocks)] = blocks
        self._num_blocks[group][slot] = start + len(blocks)
