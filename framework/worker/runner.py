"""The only place with tensors between scheduler and model: one batch per step, from permanent rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from .sampler import PendingLogprobs, Sampled, Sampler
from .step_rows import DraftRows, Masks, SampleRows, StepRows
from .transfer import HostCopy, all_to_device, device_losses, is_device_loss, to_device

MAX_DECODE_TOKENS = 8
"""Rows with at most this many tokens at the front of a step, all of which have a cached prefix, run as decodes."""


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
        self._num_logits = step.num_logits
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
            tokens, *accepted = self._copy.lists()
        output = StepOutput(self._step_id, tokens, None, logprobs, prompt, self._failed)
        return _without_wrong_drafts(output, accepted[0], self._num_logits) if accepted else output

    def _sample(self, masks: np.ndarray | None) -> None:
        sampled = self._launch(masks)
        self._logprobs = sampled.logprobs
        self._copy = HostCopy(sampled.tokens) if sampled.accepted is None else HostCopy(sampled.tokens, sampled.accepted)


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
        num_drafts: int = 0,
        in_flight_steps: int = 1,
    ) -> None:
        """num_drafts: most that a row has checked in a step, of which ``in_flight_steps`` run at a time."""
        self.model, self.caches, self.device = model, caches, device
        self.sampler = Sampler(plan, num_seats, model.vocab_size, device)
        on_device = num_drafts > 0 and in_flight_steps > 1
        self.rows = RequestRows(num_seats, model.max_model_len, len(groups), block_size, device, num_drafts, on_device)
        self._ahead = num_drafts * (in_flight_steps - 1)
        self._slot_mapping = plan.bind("slot_mapping", params={"page_size": block_size})
        self._copy_blocks = plan.bind("copy_blocks", facts={"page_size": block_size})
        self._groups = groups
        self._workspaces: list[tuple[dict, dict]] = [({}, {}) for _ in groups]
        self._graphs: DecodeGraphs | None = None

    def capture_graphs(self, batch_sizes: list[int], capture: Capture, query_lens: Iterable[int] = (1,)) -> None:
        """From now on, steps of decodes only replay a recording of the model, also those that have drafts checked, if their rows have
        so many tokens. ``capture`` turns a function into its replay."""
        self._graphs = DecodeGraphs(self.model, self.caches, self.rows, self._slot_mapping, batch_sizes, capture, query_lens)

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
        if step.drafts is not None:
            self.rows.write_drafts(step)
        targets = rows.seats[rows.logit_rows].astype(np.int32), rows.logit_positions
        prompt_logprobs: dict[int, PendingLogprobs] = {}
        if self._graphs is not None and self._graphs.fits(rows, self._ahead):
            logits, hidden = self._graphs.run(rows)
            row_to_seat, position = all_to_device(targets, self.device)
        else:
            batch, (row_to_seat, position) = self._batch(rows, targets)
            self.model.begin_step(batch)
            hidden = self.model.forward(batch)
            prompt_logprobs = self._prompt_logprobs(rows, hidden)
            logits = self.model.logits(hidden[batch.logits_indices]) if len(rows.sampled) else hidden[:0]
        if self.rows.computed is not None:
            bound = to_device(rows.first[rows.logit_rows], self.device)
            position = position + self.rows.computed[row_to_seat.long()] - bound
        self.rows.advance(rows)
        if not len(rows.sampled):
            return StepHandle(step, _nothing, prompt_logprobs, failed)
        sample_rows = SampleRows(targets[0], targets[1], row_to_seat, position, ahead=self._ahead)
        if rows.has_drafts:
            sample_rows.drafts = self._draft_rows(rows)
        masked = np.flatnonzero(np.isin(rows.logit_rows, step.masked)) if step.masked else None
        launch = partial(self._sample, logits, sample_rows, masked, rows.seats[rows.sampled])
        return StepHandle(step, launch, prompt_logprobs, failed)

    @torch.inference_mode()
    def _sample(
        self, logits: torch.Tensor, rows: SampleRows, masked: np.ndarray | None, seats: np.ndarray, masks: np.ndarray | None
    ) -> Sampled:
        """Logits [R', V], which may be the recording's own: valid until the next step. masks: of the logit rows ``masked``; seats:
        of the rows that yield tokens."""
        if masked is not None and masks is not None:
            rows.masks = Masks(masked, masks)
        sampled = self.sampler.sample(logits, rows, self.rows.tokens)
        self.rows.tokens[rows.row_to_seat.long(), rows.position] = sampled.tokens.long().clamp_min(0)
        if rows.drafts is not None and sampled.accepted is not None:
            self.rows.retract(seats, rows.drafts.num_drafts - sampled.accepted)
        return sampled

    def _draft_rows(self, rows: StepRows) -> DraftRows:
        num_drafts = rows.num_logits[rows.sampled] - 1
        row_of = np.repeat(np.arange(len(num_drafts)), num_drafts + 1)
        return DraftRows(rows.nth_logit, *all_to_device((rows.nth_logit, row_of, rows.logit_grid, num_drafts), self.device))

    @torch.inference_mode()
    def token_logits(self, step: StepInput) -> torch.Tensor:
        """Applies the deltas and computes the rows; samples nothing, so that the next tokens are those of the requests. Logits
        [T, V] of every token of the step, in the model's dtype, valid until the next step."""
        self.rows.apply(step)
        rows = self._step_rows(step)
        if self._graphs is not None and self._graphs.fits(rows, self._ahead):
            logits, _ = self._graphs.run(rows)
        else:
            batch, _ = self._batch(rows, ())
            self.model.begin_step(batch)
            logits = self.model.logits(self.model.forward(batch))
        self.rows.advance(rows)
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
        first = self.rows.num_computed[seats] if self.rows.computed is None else np.asarray(step.num_computed)
        return StepRows(seats, counts, first, first + counts, bounds, np.asarray(step.num_logits))

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
            rows.logit_tokens,
            cu_q,
            lengths,
            cu_q[n:] - cu_q[n],
            lengths[n:],  # again: kernels may not be compiled for the address that a slice starts at
            self.rows.tables[:, rows.seats, :width],
        )
        tensors = all_to_device((*arrays, *more), self.device)
        token_positions, token_seats, logits_indices, cu_q_all, lengths_all, cu_q_prefill, lengths_prefill, tables = tensors[:8]
        if self.rows.computed is not None:
            bound = to_device(np.repeat(rows.first, rows.counts), self.device)
            token_positions = token_positions - bound + self.rows.computed[token_seats]
            lengths_all = (token_positions[cu_q_all[1:].long() - 1] + 1).int()
            lengths_prefill = lengths_all[n:].clone()
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
    return Sampled(torch.empty(0, dtype=torch.int32))


def _without_wrong_drafts(output: StepOutput, accepted: list[int], num_logits: list[int]) -> StepOutput:
    """Of an output with a token per logit row, those that count."""
    first, kept = 0, list[int]()
    for count, wanted in zip(accepted, filter(None, num_logits)):
        kept += range(first, first + count + 1)
        first += wanted
    tokens = [output.token_ids[index] for index in kept]
    logprobs = {i: output.logprobs[index] for i, index in enumerate(kept) if index in output.logprobs}
    return replace(output, token_ids=tokens, num_accepted=accepted, logprobs=logprobs)


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
