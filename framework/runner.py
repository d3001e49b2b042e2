"""The only place with tensors between scheduler and model: one batch per step, from permanent rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .decode_graphs import DecodeGraphs
from .forward_batch import ForwardBatch, GroupBatch
from .kv_cache.spec import CacheGroup
from .models.protocol import Model
from .plan import AttentionMeta, KernelPlan, LayerKV
from .request_rows import RequestRows
from .sampler import PendingLogprobs, Sampler, SampleRows
from .step import StepInput, StepOutput
from .transfer import HostCopy, to_device

MAX_DECODE_TOKENS = 8
"""Rows with at most this many tokens at the front of a step, all of which have a cached prefix, run as decodes."""


class StepHandle:
    """A step that was launched; what it brings may still be on its way from the device."""

    def __init__(
        self, step_id: int, tokens: torch.Tensor, logprobs: PendingLogprobs | None, prompt: dict[int, PendingLogprobs]
    ) -> None:
        self._step_id, self._tokens, self._logprobs, self._prompt = step_id, HostCopy(tokens), logprobs, prompt

    def result(self) -> StepOutput:
        logprobs = self._logprobs.by_row() if self._logprobs is not None else {}
        prompt = {row: list(pending.by_row().values()) for row, pending in self._prompt.items()}
        return StepOutput(self._step_id, self._tokens.lists()[0], None, logprobs, prompt)


@dataclass
class StepRows:
    """The rows of a step on the host: int64 [R] each. first: tokens in the cache before it; starts, ends: of its rows of tokens."""

    slots: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    sampled: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache after the step."""
        return self.first + self.counts


class Runner:
    """Executes step inputs on a model."""

    def __init__(self, model: Model, plan: KernelPlan, groups: tuple[CacheGroup, ...], caches: list[LayerKV], num_slots: int,
                 block_size: int, device: torch.device) -> None:  # fmt: skip
        self.model, self.caches, self.device, self.block_size = model, caches, device, block_size
        self.sampler = Sampler(plan, num_slots, model.vocab_size, device)
        self.rows = RequestRows(num_slots, model.max_model_len, len(groups), block_size, device)
        self._copy_blocks = plan.bind("copy_blocks", facts={"page_size": block_size})
        self._groups = groups
        self._workspaces: list[tuple[dict, dict]] = [({}, {}) for _ in groups]
        self._graphs: DecodeGraphs | None = None

    def capture_graphs(
        self, batch_sizes: list[int], capture: Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
    ) -> None:
        """From now on, steps of decodes only replay a recording of the model. ``capture`` turns a function into its replay."""
        self._graphs = DecodeGraphs(self.model, self.caches, self.rows, self.block_size, batch_sizes, capture)

    @torch.inference_mode()
    def step(self, step: StepInput) -> StepHandle:
        """Applies the deltas, computes the rows, samples."""
        self.rows.apply(step)
        for request in step.new:
            self.sampler.add(request)
        self._copy(step.copies)
        if not step.slots:
            return StepHandle(step.step_id, torch.empty(0, dtype=torch.int32), None, {})
        rows = self._step_rows(step)
        prompt_logprobs: dict[int, PendingLogprobs] = {}
        if self._graphs is not None and self._graphs.fits(rows.counts, rows.first):
            logits = self._graphs.run(rows.slots, rows.first)
        else:
            batch = self._batch(rows)
            self.model.begin_step(batch)
            hidden = self.model.forward(batch, self.caches)
            prompt_logprobs = self._prompt_logprobs(rows, hidden)
            logits = self.model.logits(hidden[batch.logits_indices]) if len(rows.sampled) else hidden[:0]
        self.rows.num_computed[rows.slots] = rows.lengths
        if not len(rows.sampled):
            return StepHandle(step.step_id, torch.empty(0, dtype=torch.int32), None, prompt_logprobs)
        slots, positions = rows.slots[rows.sampled], rows.lengths[rows.sampled]
        sample_rows = SampleRows(
            slots, positions, to_device(slots.astype(np.int32), self.device), to_device(positions, self.device)
        )
        tokens, logprobs = self.sampler.sample(logits, sample_rows, self.rows.tokens)
        self.rows.tokens[sample_rows.row_to_slot.long(), sample_rows.position] = tokens.long().clamp_min(0)
        return StepHandle(step.step_id, tokens, logprobs, prompt_logprobs)

    def _copy(self, copies: list[tuple[int, int, int]]) -> None:
        for index, group in enumerate(self._groups):
            pairs = np.array([(src, dst) for g, src, dst in copies if g == index], dtype=np.int64)
            if len(pairs):
                src, dst = to_device(pairs, self.device).unbind(1)
                for layer in group.layers:
                    self._copy_blocks(self.caches[layer], src, dst)

    def _step_rows(self, step: StepInput) -> StepRows:
        slots, counts = np.asarray(step.slots), np.asarray(step.num_tokens)
        ends = np.cumsum(counts)
        return StepRows(slots, counts, self.rows.num_computed[slots], ends - counts, ends, np.flatnonzero(step.samples))

    def _batch(self, rows: StepRows) -> ForwardBatch:
        row_of_token = np.repeat(np.arange(len(rows.slots)), rows.counts)
        positions = np.arange(rows.ends[-1]) + (rows.first - rows.starts)[row_of_token]
        token_slots = rows.slots[row_of_token]
        # Decodes come first; a short row anywhere else would be the tail of a prompt, which prefill handles too.
        is_decode = (rows.counts <= MAX_DECODE_TOKENS) & (rows.first > 0)
        num_decodes = len(is_decode) if is_decode.all() else int(np.argmin(is_decode))
        positions_device = to_device(positions, self.device)
        groups = [self._group_batch(group, rows, token_slots, positions, num_decodes) for group in range(len(self._groups))]
        return ForwardBatch(
            self.rows.tokens[to_device(token_slots, self.device), positions_device],
            positions_device,
            int(rows.ends[num_decodes - 1]) if num_decodes else 0,
            groups,
            to_device(rows.ends[rows.sampled] - 1, self.device),
        )

    def _group_batch(
        self, group: int, rows: StepRows, token_slots: np.ndarray, positions: np.ndarray, num_decodes: int
    ) -> GroupBatch:
        table = self.rows.tables[group]
        block = table[token_slots, positions // self.block_size].astype(np.int64)
        slot_mapping = block * self.block_size + positions % self.block_size
        parts = (slice(0, num_decodes), slice(num_decodes, len(rows.slots)))
        metas = (self._attention_meta(table, rows, part, workspace) for part, workspace in zip(parts, self._workspaces[group]))
        return GroupBatch(to_device(slot_mapping, self.device), *metas)

    def _attention_meta(self, table: np.ndarray, rows: StepRows, part: slice, workspace: dict) -> AttentionMeta | None:
        if part.start == part.stop:
            return None
        lengths = rows.lengths[part].astype(np.int32)
        longest = int(lengths.max())
        cu_q = np.append(rows.starts[part], rows.ends[part.stop - 1]) - rows.starts[part.start]
        blocks = table[rows.slots[part], : -(-longest // self.block_size)]
        return AttentionMeta(
            to_device(cu_q.astype(np.int32), self.device), to_device(lengths, self.device), to_device(blocks, self.device),
            int(rows.counts[part].max()), longest, workspace,
        )  # fmt: skip

    def _prompt_logprobs(self, rows: StepRows, hidden: torch.Tensor) -> dict[int, PendingLogprobs]:
        """For rows that asked: of each prompt token whose predecessor was computed in this step."""
        found = {}
        for row, slot in enumerate(rows.slots.tolist()):
            start, first = int(rows.starts[row]), int(rows.first[row])
            count = min(int(rows.counts[row]), int(self.rows.num_prompt_tokens[slot]) - 1 - first)
            if count > 0 and self.sampler.wants_prompt_logprobs(slot):
                targets = self.rows.tokens[slot, first + 1 : first + 1 + count]
                found[row] = self.sampler.prompt_logprobs(slot, self.model.logits, hidden[start : start + count], targets)
        return found
