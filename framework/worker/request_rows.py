"""What the runner knows of each request between steps: one permanent row, from its first step until it is released."""

from __future__ import annotations

import numpy as np
import torch

from ..engine.encoding import View
from ..engine.step import StepInput
from .step_rows import StepRows
from .transfer import to_device

TABLE_COLUMNS = 16
"""Block tables are a multiple of it wide: kernels are compiled for the divisibility of addresses and strides, and so that of a
table and of its rows is the same in every step."""


class RequestRows:
    """Tokens on the device, block tables and counters on the host.

    tokens             int64 [seats + 1, max_model_len + 1 + num_drafts] on the device: sampled tokens and drafts are written here
                       and the next step reads its inputs from here, so that nothing waits for the host. The last row belongs to
                       padding.
    tables             int32 [KV groups, seats + 1, ``table_width`` of the longest sequence and drafts behind it]; the null block
                       where a request has none
    num_computed       int64 [seats + 1]: tokens in the cache, at most where ``computed`` is there
    computed           int64 [seats + 1] on the device: the same, exactly. None: the host knows, because steps are done when it
                       looks at their rows, or because no step has drafts
    num_prompt_tokens  int64 [seats + 1]
    lora_slots         int32 [seats + 1]: of each request's adapter, -1 = none
    num_encoded        int32 [seats + 1]: of the vectors that an encoder gave for each request, those that generated tokens see:
                       the first. views: of seats, what tokens of the prompt see, where that is not the same
    """

    def __init__(
        self,
        num_seats: int,
        max_model_len: int,
        num_groups: int,
        block_size: int,
        device: torch.device,
        num_drafts: int = 0,
        counts_on_device: bool = False,
        max_encoded: int = 0,
    ) -> None:
        """max_encoded: places that what an encoder gives for a request takes at most."""
        self.device, self.padding_seat, self.num_drafts = device, num_seats, num_drafts
        self.tokens = torch.zeros(num_seats + 1, max_model_len + 1 + num_drafts, dtype=torch.int64, device=device)
        self.block_size, self.max_encoded = block_size, max_encoded
        width = self.table_width(max(max_model_len + 1 + num_drafts, max_encoded))
        self.tables = np.zeros((num_groups, num_seats + 1, width), dtype=np.int32)
        self._num_blocks = [np.zeros(num_seats + 1, dtype=np.int64) for _ in range(num_groups)]
        self.num_computed = np.zeros(num_seats + 1, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(num_seats + 1, dtype=np.int64)
        self.lora_slots = np.full(num_seats + 1, -1, dtype=np.int32)
        self.num_encoded = np.zeros(num_seats + 1, dtype=np.int32)
        self.views: dict[int, tuple[View, ...]] = {}
        self.computed = torch.zeros(num_seats + 1, dtype=torch.int64, device=device) if counts_on_device else None

    def table_width(self, num_tokens: int) -> int:
        """Columns that hold the blocks of ``num_tokens`` tokens."""
        return -(-num_tokens // (self.block_size * TABLE_COLUMNS)) * TABLE_COLUMNS

    def apply(self, step: StepInput) -> None:
        """Takes in the deltas of a step: released rows, new requests, further blocks."""
        for seat in step.released:
            for counts in self._num_blocks:
                counts[seat] = 0
        for request in step.new:
            ids = np.asarray(request.token_ids, dtype=np.int64)
            self.tokens[request.seat, : len(ids)] = to_device(ids, self.device)
            self.num_computed[request.seat] = request.num_computed_tokens
            if self.computed is not None:
                self.computed[request.seat] = request.num_computed_tokens
            self.num_prompt_tokens[request.seat] = request.num_prompt_tokens
            self.lora_slots[request.seat] = request.lora_slot
            encoded = request.encoder_input
            self.num_encoded[request.seat] = 0 if encoded is None else encoded.num_seen
            self.views[request.seat] = () if encoded is None else encoded.views
            for group, blocks in enumerate(request.block_ids):
                self._num_blocks[group][request.seat] = 0
                self.tables[group, request.seat] = 0
                self._append(request.seat, group, blocks)
        for seat, group, blocks in step.new_blocks:
            self._append(seat, group, blocks)

    def write_decoded(self, step: StepInput) -> None:
        """Puts tokens that another process sampled where the step's rows read them."""
        if step.decoded:
            seats = np.array(step.seats[: len(step.decoded)])
            places = np.stack([seats, self.num_computed[seats], np.array(step.decoded)])
            seat, position, token = to_device(places, self.device).unbind(0)
            self.tokens[seat, position] = token

    def write_drafts(self, step: StepInput) -> None:
        """Puts drafts that came from the host where the step's rows read their tokens: behind the last known one."""
        assert step.drafts is not None and step.num_computed is not None
        places = [
            (seat, end + nth, token)
            for seat, first, count, drafts in zip(step.seats, step.num_computed, step.num_tokens, step.drafts)
            for end in (first + count - len(drafts),)
            for nth, token in enumerate(drafts)
        ]
        if places:
            seat, position, token = to_device(np.array(places), self.device).unbind(1)
            self.tokens[seat, position] = token

    def advance(self, rows: StepRows) -> None:
        """Counts the tokens of a step as computed, its drafts too."""
        self.num_computed[rows.seats] = rows.lengths
        if self.computed is not None:
            seats, counts = to_device(np.stack([rows.seats, rows.counts]), self.device).unbind(0)
            self.computed.index_add_(0, seats, counts)

    def retract(self, seats: np.ndarray, num_wrong: torch.Tensor) -> None:
        """Takes back drafts that were computed and are wrong: int64 [R] each."""
        if self.computed is None:
            self.num_computed[seats] -= num_wrong.numpy()
        else:
            self.computed.index_add_(0, to_device(seats, self.device), num_wrong, alpha=-1)

    def _append(self, seat: int, group: int, blocks: list[int]) -> None:
        start = self._num_blocks[group][seat]
        self.tables[group, seat, start : start + len(blocks)] = blocks
        self._num_blocks[group][seat] = start + len(blocks)
