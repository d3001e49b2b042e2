"""The only place with tensors between scheduler and model: permanent rows per request, one batch per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .forward_batch import ForwardBatch, GroupBatch
from .kv_cache.spec import CacheGroup
from .plan import AttentionMeta, KernelPlan, LayerKV
from .sampler import Sampler, SampleRows
from .step import StepInput, StepOutput, TokenLogprobs

if TYPE_CHECKING:
    from .models.protocol import Model

MAX_DECODE_TOKENS = 8
"""Rows with at most this many tokens at the front of a step, all of which have a cached prefix, run as decodes."""


class StepHandle:
    """A step that was launched; the tokens may still be on their way from the device."""

    def __init__(self, step_id: int, tokens: torch.Tensor, logprobs: dict[int, TokenLogprobs],
                 prompt_logprobs: dict[int, list[TokenLogprobs]]) -> None:  # fmt: skip
        self._step_id, self._tokens = step_id, tokens
        self._logprobs, self._prompt_logprobs = logprobs, prompt_logprobs

    def result(self) -> StepOutput:
        return StepOutput(self._step_id, self._tokens.tolist(), None, self._logprobs, self._prompt_logprobs)


class Runner:
    """Executes step inputs on a model.

    The tokens of every request live in a device buffer ``[slots, max_model_len]``: sampled tokens are written there and the
    next step reads its inputs from there, so that nothing waits for the host.
    """

    def __init__(self, model: Model, plan: KernelPlan, groups: tuple[CacheGroup, ...], caches: list[LayerKV], num_slots: int,
                 block_size: int, device: torch.device) -> None:  # fmt: skip
        self.model, self.caches, self.device, self.block_size = model, caches, device, block_size
        self.sampler = Sampler(plan, num_slots, model.vocab_size, device)
        self._copy_blocks = plan.bind("copy_blocks", facts={"page_size": block_size})
        self._groups = groups
        self._max_len = model.max_model_len
        max_blocks = -(-self._max_len // block_size)
        self._tokens = torch.zeros(num_slots, self._max_len + 1, dtype=torch.int64, device=device)
        self._tables = [np.zeros((num_slots, max_blocks), dtype=np.int32) for _ in groups]
        self._num_blocks = [np.zeros(num_slots, dtype=np.int64) for _ in groups]
        self._num_computed = np.zeros(num_slots, dtype=np.int64)
        self._num_prompt_tokens = np.zeros(num_slots, dtype=np.int64)
        self._workspaces: list[tuple[dict, dict]] = [({}, {}) for _ in groups]

    @torch.inference_mode()
    def step(self, step: StepInput) -> StepHandle:
        """Applies the deltas, computes the rows, samples."""
        self._apply(step)
        if not step.slots:
            return StepHandle(step.step_id, torch.empty(0, dtype=torch.int32), {}, {})
        slots = np.asarray(step.slots)
        counts = np.asarray(step.num_tokens)
        first = self._num_computed[slots]
        batch, sampled = self._batch(step, slots, counts, first)
        self.model.begin_step(batch)
        hidden = self.model.forward(batch, self.caches)
        prompt_logprobs = self._prompt_logprobs(slots, counts, first, hidden)
        self._num_computed[slots] = first + counts
        tokens = torch.empty(0, dtype=torch.int32)
        logprobs: dict[int, TokenLogprobs] = {}
        if len(sampled):
            rows = SampleRows(slots[sampled], self._to_device(slots[sampled].astype(np.int32)),
                              self._to_device((first + counts)[sampled]))  # fmt: skip
            logits = self.model.logits(hidden[batch.logits_indices])
            tokens, logprobs = self.sampler.sample(logits, rows, self._tokens)
            self._tokens[rows.row_to_slot.long(), rows.position] = tokens.long().clamp_min(0)
        return StepHandle(step.step_id, tokens, logprobs, prompt_logprobs)

    def _apply(self, step: StepInput) -> None:
        for slot in step.released:
            for counts in self._num_blocks:
                counts[slot] = 0
        for request in step.new:
            slot = request.slot
            self._tokens[slot, : len(request.token_ids)] = torch.tensor(request.token_ids, device=self.device)
            self._num_computed[slot] = request.num_computed_tokens
            self._num_prompt_tokens[slot] = request.num_prompt_tokens
            for index, blocks in enumerate(request.block_ids):
                self._tables[index][slot, : len(blocks)] = blocks
                self._num_blocks[index][slot] = len(blocks)
            self.sampler.add(request)
        for slot, index, blocks in step.new_blocks:
            start = self._num_blocks[index][slot]
            self._tables[index][slot, start : start + len(blocks)] = blocks
            self._num_blocks[index][slot] = start + len(blocks)
        for index, group in enumerate(self._groups):
            pairs = [(src, dst) for g, src, dst in step.copies if g == index]
            if pairs:
                src, dst = torch.tensor(pairs, dtype=torch.int64, device=self.device).unbind(1)
                for layer in group.layers:
                    self._copy_blocks(self.caches[layer], src, dst)

    def _batch(self, step: StepInput, slots: np.ndarray, counts: np.ndarray, first: np.ndarray) -> tuple[ForwardBatch, np.ndarray]:
        """The batch, and the indices of the rows that sample."""
        ends = np.cumsum(counts)
        starts = ends - counts
        row_of_token = np.repeat(np.arange(len(slots)), counts)
        positions = np.arange(ends[-1]) + (first - starts)[row_of_token]
        token_slots = slots[row_of_token]
        # Decodes come first; a single-token row anywhere else would be the tail of a prompt, which prefill handles too.
        is_decode = (counts <= MAX_DECODE_TOKENS) & (first > 0)
        num_decodes = int(np.argmin(is_decode)) if not is_decode.all() else len(slots)
        num_decode_tokens = int(ends[num_decodes - 1]) if num_decodes else 0
        sampled = np.flatnonzero(step.samples)
        positions_device = self._to_device(positions)
        token_ids = self._tokens[self._to_device(token_slots), positions_device]
        lengths = (first + counts).astype(np.int32)
        groups = [
            self._group_batch(group, slots, token_slots, positions, starts, ends, lengths, num_decodes)
            for group in range(len(self._tables))
        ]
        return ForwardBatch(token_ids, positions_device, num_decode_tokens, groups, self._to_device(ends[sampled] - 1)), sampled

    def _group_batch(self, group: int, slots: np.ndarray, token_slots: np.ndarray, positions: np.ndarray, starts: np.ndarray,
                     ends: np.ndarray, lengths: np.ndarray, num_decodes: int) -> GroupBatch:  # fmt: skip
        table = self._tables[group]
        block = table[token_slots, positions // self.block_size].astype(np.int64)
        slot_mapping = block * self.block_size + positions % self.block_size
        metas: list[AttentionMeta | None] = []
        for part, workspace in zip((slice(0, num_decodes), slice(num_decodes, len(slots))), self._workspaces[group]):
            if part.start == part.stop:
                metas.append(None)
                continue
            cu_q = np.concatenate(([starts[part][0]], ends[part])) - starts[part][0]
            longest = int(lengths[part].max())
            rows = table[slots[part], : -(-longest // self.block_size)]
            metas.append(AttentionMeta(
                self._to_device(cu_q.astype(np.int32)), self._to_device(lengths[part]), self._to_device(rows),
                int((ends[part] - starts[part]).max()), longest, workspace,
            ))  # fmt: skip
        return GroupBatch(self._to_device(slot_mapping), *metas)

    def _prompt_logprobs(
        self, slots: np.ndarray, counts: np.ndarray, first: np.ndarray, hidden: torch.Tensor
    ) -> dict[int, list[TokenLogprobs]]:
        """For rows that asked: of each prompt token whose predecessor was computed in this step."""
        found = {}
        starts = np.cumsum(counts) - counts
        for row, slot in enumerate(slots.tolist()):
            count = min(int(counts[row]), int(self._num_prompt_tokens[slot] - 1 - first[row]))
            if count > 0 and self.sampler.wants_prompt_logprobs(slot):
                logits = self.model.logits(hidden[starts[row] : starts[row] + count])
                targets = self._tokens[slot, first[row] + 1 : first[row] + 1 + count]
                found[row] = self.sampler.prompt_logprobs(slot, logits, targets)
        return found

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
