"""The only place with tensors between scheduler and model: one batch per step, from permanent rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..engine.kv_cache.spec import CacheGroup
from ..engine.step import StepInput, StepOutput
from ..models.batch import ForwardBatch, GroupBatch
from ..models.protocol import Model
from ..plan import AttentionMeta, KernelPlan, LayerKV
from ..sampling_params import SamplingParams
from .decode_graphs import DecodeGraphs
from .devices import Capture
from .request_rows import RequestRows
from .sampler import PendingLogprobs, Sampler
from .step_rows import Masks, SampleRows, StepRows
from .transfer import HostCopy, all_to_device, device_losses, is_device_loss, to_device

MAX_DECODE_TOKENS = 8
"""Rows with at most this many tokens at the front of a step, all of which have a cached prefix, run as decodes."""


Sampled = tuple[torch.Tensor, PendingLogprobs | None]
"""Tokens int32 [R] on the device, and the log-probabilities of rows that asked."""


class StepHandle:
    """A step that was launched; what it brings may still be on its way from the device. ``launch`` samples it; a step without
    masked rows is sampled at once."""

    def __init__(
        self,
        step: StepInput,
        launch: Callable[[np.ndarray | None], Sampled],
        prompt: dict[int, PendingLogprobs],
        failed: dict[int, str],
    ) -> None:
        self._step_id, self._launch, self._prompt, self._failed = step.step_id, launch, prompt, failed
        if not step.masked:
            self._sample(None)

    def sample(self, masks: np.ndarray) -> None:
        """As Handle has it."""
        with device_losses():
            self._sample(masks)

    def result(self) -> StepOutput:
        with device_losses():
            logprobs = self._logprobs.by_row() if self._logprobs is not None else {}
            prompt = {row: list(pending.by_row().values()) for row, pending in self._prompt.items()}
            return StepOutput(self._step_id, self._tokens.lists()[0], None, logprobs, prompt, self._failed)

    def _sample(self, masks: np.ndarray | None) -> None:
        tokens, self._logprobs = self._launch(masks)
        self._tokens = HostCopy(tokens)


class Runner:
    """Executes step inputs on a model."""

    def __init__(
        self,
        model: Model,
        plan: KernelPlan,
        groups: tuple[CacheGroup, ...],
        caches: list[LayerKV],
        num_seats: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.model, self.caches, self.device = model, caches, device
        self.sampler = Sampler(plan, num_seats, model.vocab_size, device)
        self.rows = RequestRows(num_seats, model.max_model_len, len(groups), block_size, device)
        self._slot_mapping = plan.bind("slot_mapping", params={"page_size": block_size})
        self._copy_blocks = plan.bind("copy_blocks", facts={"page_size": block_size})
        self._groups = groups
        self._workspaces: list[tuple[dict, dict]] = [({}, {}) for _ in groups]
        self._graphs: DecodeGraphs | None = None

    def capture_graphs(self, batch_sizes: list[int], capture: Capture) -> None:
        """From now on, steps of decodes only replay a recording of the model. ``capture`` turns a function into its replay."""
        self._graphs = DecodeGraphs(self.model, self.caches, self.rows, self._slot_mapping, batch_sizes, capture)

    @torch.inference_mode()
    def step(self, step: StepInput) -> StepHandle:
        """Applies the deltas, computes the rows, samples unless masks are to come. After an exception, wherever it came from, other
        steps give what they would have given without this one, once its seats were released."""
        self.rows.apply(step)
        failed = self._add_to_sampler(step)
        self._copy(step.copies)
        if not step.seats:
            return StepHandle(step, _nothing, {}, failed)
        rows = self._step_rows(step)
        seats, positions = rows.seats[rows.sampled], rows.lengths[rows.sampled]
        prompt_logprobs: dict[int, PendingLogprobs] = {}
        if self._graphs is not None and self._graphs.fits(rows):
            logits = self._graphs.run(rows.seats, rows.first)
            targets = all_to_device((seats.astype(np.int32), positions), self.device)
        else:
            batch, targets = self._batch(rows, (seats.astype(np.int32), positions))
            self.model.begin_step(batch)
            hidden = self.model.forward(batch)
            prompt_logprobs = self._prompt_logprobs(rows, hidden)
            logits = self.model.logits(hidden[batch.logits_indices]) if len(rows.sampled) else hidden[:0]
        self.rows.num_computed[rows.seats] = rows.lengths
        if not len(rows.sampled):
            return StepHandle(step, _nothing, prompt_logprobs, failed)
        row_to_seat, position = targets
        sample_rows = SampleRows(seats, positions, row_to_seat, position)
        masked = np.searchsorted(rows.sampled, step.masked) if step.masked else None
        return StepHandle(step, partial(self._sample, logits, sample_rows, masked), prompt_logprobs, failed)

    @torch.inference_mode()
    def _sample(self, logits: torch.Tensor, rows: SampleRows, masked: np.ndarray | None, masks: np.ndarray | None) -> Sampled:
        """Logits [R, V], which may be the recording's own: valid until the next step. masks: of the rows ``masked``."""
        if masked is not None and masks is not None:
            rows.masks = Masks(masked, masks)
        tokens, logprobs = self.sampler.sample(logits, rows, self.rows.tokens)
        self.rows.tokens[rows.row_to_seat.long(), rows.position] = tokens.long().clamp_min(0)
        return tokens, logprobs

    @torch.inference_mode()
    def token_logits(self, step: StepInput) -> torch.Tensor:
        """Applies the deltas and computes the rows; samples nothing, so that the next tokens are those of the requests. Logits
        [T, V] of every token of the step, in the model's dtype, valid until the next step."""
        self.rows.apply(step)
        rows = self._step_rows(step)
        if self._graphs is not None and self._graphs.fits(rows):
            logits = self._graphs.run(rows.seats, rows.first)
        else:
            batch, _ = self._batch(rows, ())
            self.model.begin_step(batch)
            logits = self.model.logits(self.model.forward(batch))
        self.rows.num_computed[rows.seats] = rows.lengths
        return logits

    def _add_to_sampler(self, step: StepInput) -> dict[int, str]:
        """Row -> what was wrong with its request, which computes with harmless parameters instead."""
        failed = {}
        for request in step.new:
            try:
                self.sampler.add(request)
            except Exception as error:
                if is_device_loss(error):
                    raise
                self.sampler.add(replace(request, sampling=_harmless()))
                failed[step.seats.index(request.seat)] = f"{type(error).__name__}: {error}"
        return failed

    def _copy(self, copies: list[tuple[int, int, int]]) -> None:
        for index, group in enumerate(self._groups):
            pairs = np.array([(src, dst) for g, src, dst in copies if g == index], dtype=np.int64)
            if len(pairs):
                src, dst = to_device(pairs, self.device).unbind(1)
                for layer in group.layers:
                    self._copy_blocks(self.caches[layer], src, dst)

    def _step_rows(self, step: StepInput) -> StepRows:
        seats, counts = np.asarray(step.seats), np.asarray(step.num_tokens)
        bounds = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=bounds[1:])
        first = self.rows.num_computed[seats]
        return StepRows(seats, counts, first, first + counts, bounds, np.flatnonzero(step.samples))

    def _batch(self, rows: StepRows, more: tuple[np.ndarray, ...]) -> tuple[ForwardBatch, list[torch.Tensor]]:
        """The tensors of a step, and ``more`` on the device, where all of them go in one copy."""
        row_of_token = np.repeat(np.arange(len(rows.seats)), rows.counts)
        positions = np.arange(rows.bounds[-1]) + (rows.first - rows.bounds[:-1])[row_of_token]
        # Decodes come first; a short row anywhere else would be the tail of a prompt, which prefill handles too.
        is_decode = (rows.counts <= MAX_DECODE_TOKENS) & (rows.first > 0)
        n = len(is_decode) if is_decode.all() else int(np.argmin(is_decode))
        lengths, cu_q = rows.lengths.astype(np.int32), rows.bounds.astype(np.int32)
        width = self.rows.table_width(int(lengths.max()))
        arrays = (
            positions,
            rows.seats[row_of_token],
            rows.bounds[rows.sampled + 1] - 1,
            cu_q,
            lengths,
            cu_q[n:] - cu_q[n],
            lengths[n:],  # again: kernels may not be compiled for the address that a slice starts at
            self.rows.tables[:, rows.seats, :width],
        )
        tensors = all_to_device((*arrays, *more), self.device)
        token_positions, token_seats, logits_indices, cu_q_all, lengths_all, cu_q_prefill, lengths_prefill, tables = tensors[:8]
        groups = [
            GroupBatch(
                self._slot_mapping(token_positions, cu_q_all, lengths_all, table),
                _attention_meta(rows, slice(0, n), cu_q_all[: n + 1], lengths_all[:n], table, workspaces[0]),
                _attention_meta(rows, slice(n, None), cu_q_prefill, lengths_prefill, table, workspaces[1]),
            )
            for table, workspaces in zip(tables, self._workspaces)
        ]
        token_ids = self.rows.tokens[token_seats, token_positions]
        num_decode_tokens = int(rows.bounds[n])
        return ForwardBatch(token_ids, token_positions, num_decode_tokens, groups, self.caches, logits_indices), tensors[8:]

    def _prompt_logprobs(self, rows: StepRows, hidden: torch.Tensor) -> dict[int, PendingLogprobs]:
        """For rows that asked: of each prompt token whose predecessor was computed in this step."""
        found = {}
        for row, seat in enumerate(rows.seats.tolist()):
            start, first = int(rows.bounds[row]), int(rows.first[row])
            count = min(int(rows.counts[row]), int(self.rows.num_prompt_tokens[seat]) - 1 - first)
            if count > 0 and self.sampler.wants_prompt_logprobs(seat):
                targets = self.rows.tokens[seat, first + 1 : first + 1 + count]
                found[row] = self.sampler.prompt_logprobs(seat, self.model.logits, hidden[start : start + count], targets)
        return found


def _nothing(masks: np.ndarray | None) -> Sampled:
    return torch.empty(0, dtype=torch.int32), None


def _harmless() -> SamplingParams:
    params = SamplingParams(temperature=0)
    params.seed = 0
    return params


def _attention_meta(
    rows: StepRows, part: slice, cu_q: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor, workspace: dict
) -> AttentionMeta | None:
    """Of some of the rows, None if these are none; the table is that of all rows."""
    counts = rows.counts[part]
    if not len(counts):
        return None
    longest = int(rows.lengths[part].max())
    return AttentionMeta(cu_q, seq_lens, block_table[part], int(counts.max()), longest, workspace)
