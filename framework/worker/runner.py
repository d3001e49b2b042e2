"""The only place with tensors between scheduler and model: one batch per step, from permanent rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..engine.kv_cache.spec import CacheGroup, CrossKV
from ..engine.step import StepInput, StepOutput
from ..models.architecture import Diffusion
from ..models.batch import CanvasTokens
from ..models.decoder import Decoder
from ..models.encoder import Encoder
from ..models.entropies import entropies
from ..models.protocol import Model, Redrawn
from ..plan import KernelPlan, LayerKV, LoraMeta
from ..sampling_params import SamplingParams
from ..speculation.config import SpeculativeConfig
from .batches import Batches
from .cache_memory import state_pages
from .canvases import Canvases
from .decode_graphs import DecodeGraphs
from .devices import Capture
from .drafting.proposer import DeviceProposer, Verified
from .encoding import EncoderRunner
from .image_embeddings import ImageEmbeddings
from .images import Images
from .request_rows import RequestRows
from .sampler import PendingLogprobs, Sampled, Sampler
from .step_rows import DraftRows, Masks, SampleRows, StepRows
from .transfer import HostCopy, all_to_device, device_losses, is_device_loss, to_device

_OF_CANVASES = ("confidences", "best", "entropies")


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
            tokens, *others = self._copy.lists()
        found = dict(zip(self._parts, others))
        drafts, canvases = found.get("drafts"), {name: found[name] for name in _OF_CANVASES if name in found}
        output = StepOutput(self._step_id, tokens, None, logprobs, prompt, self._failed, drafts, **canvases)
        return _without_wrong_drafts(output, found["accepted"], self._num_logits) if "accepted" in found else output

    def _sample(self, masks: np.ndarray | None) -> None:
        sampled = self._launch(masks)
        self._logprobs = sampled.logprobs
        self._parts = [name for name in ("accepted", "drafts", *_OF_CANVASES) if getattr(sampled, name) is not None]
        self._copy = HostCopy(sampled.tokens, *(getattr(sampled, name) for name in self._parts))


@dataclass(frozen=True)
class _Computed:
    """What a step gave: logits [R', V]; the others as Verified has them. All may be a recording's own: valid until the next."""

    first: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor
    recorded: torch.Tensor | None


class Runner:
    """Executes step inputs on a model."""

    def __init__(
        self,
        model: Model,
        plan: KernelPlan,
        groups: tuple[CacheGroup, ...],
        caches: Mapping[int, LayerKV],
        num_seats: int,
        block_size: int,
        device: torch.device,
        in_flight_steps: int,
        speculative: SpeculativeConfig,
        states: Mapping[int, tuple[torch.Tensor, ...]] | None = None,
        images: Images | None = None,
        encoder: Encoder | ImageEmbeddings | None = None,
        max_encoded: int = 0,
        diffusion: Diffusion | None = None,
    ) -> None:
        """in_flight_steps: how many run at a time, at most; states: of recurrent layers, a row per seat and behind them one per
        snapshot; images: None = the model reads none; encoder: whose output layers attend to; max_encoded: places that it
        takes of a request at most; diffusion: of a model that denoises."""
        self.images, self.model, self.caches, self.device = images, model, caches, device
        self._diffusion, redraws = diffusion, None if diffusion is None else diffusion.redraws
        tells = {"tells_all": diffusion is not None and redraws is None, "tells_best": redraws is not None}
        self.sampler = Sampler(plan, num_seats, model.vocab_size, device, speculative, **tells)
        self._canvases: Canvases | None = None
        behind = 0  # tokens of a canvas that no sequence is long enough for
        if diffusion is not None and redraws is not None:
            assert isinstance(model, Redrawn), "what it says in a pass is read in the next"
            behind = diffusion.canvas_size
            self._canvases = Canvases(redraws, num_seats, behind, model.hidden_size, model.dtype, device)
        num_drafts = speculative.num_speculative_tokens
        on_device = num_drafts > 0 and (in_flight_steps > 1 or device.type != "cpu")
        most = num_drafts + behind
        self.rows = RequestRows(num_seats, model.max_model_len, len(groups), block_size, device, most, on_device, max_encoded)
        self._ahead = num_drafts * (in_flight_steps - 1)
        slot_mapping = plan.bind("slot_mapping", params={"page_size": block_size})
        self._copy_blocks = plan.bind("copy_blocks", facts={"page_size": block_size})
        self._groups, self._num_seats, self._states = groups, num_seats, state_pages(states or {})
        cross = [index for index, group in enumerate(groups) if isinstance(group.spec, CrossKV)]
        has_lora = model.lora is not None
        windows = [group.spec.window for group in groups]
        self._batches = Batches(
            self.rows, slot_mapping, slice(None), caches, 0, has_lora, states, images, cross, diffusion, windows
        )
        self._encoder: EncoderRunner | None = None
        if encoder is not None:
            assert isinstance(model, Decoder), "encoders are of native models"
            self._encoder = EncoderRunner(encoder, model, self.rows, caches, cross, slot_mapping)
        self._graphs: DecodeGraphs | None = None
        self._proposer: DeviceProposer | None = None
        self._drafts: tuple[np.ndarray, DraftRows] | None = None

    def draft(self, proposer: DeviceProposer) -> None:
        """From now on, steps end with the drafts that they are asked for."""
        self._proposer = proposer

    def watch(self, around: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """From now on, the parts "sampling" and "drafting" of a step are ``around(part, call)``."""
        setattr(self, "_sample", around("sampling", self._sample))  # noqa: B010
        setattr(self, "_propose", around("drafting", self._propose))  # noqa: B010

    def capture_graphs(
        self, batch_sizes: list[int], capture: Capture, query_lens: Iterable[int] = (1,), most_padding: float | None = None
    ) -> None:
        """From now on, steps of decodes only replay a recording of the model, also those that check drafts, of rows with so many
        tokens. ``capture`` turns a function into its replay."""
        self._graphs = DecodeGraphs(self.model, self._batches, batch_sizes, capture, query_lens, most_padding)
        if self._proposer is not None:
            self._proposer.record(self._graphs.recorder, self._graphs.query_lens)

    @torch.inference_mode()
    def step(self, step: StepInput) -> StepHandle:
        """Applies the deltas, computes the rows, samples unless masks are to come. After an exception, wherever it came from, other
        steps give what they would have given without this one, once its seats were released."""
        for slot, key in step.lora_loads:
            assert self.model.lora is not None, "adapters come to models with slots for them"
            self.model.lora.load(slot, key)
        self.rows.apply(step)
        if self.images is not None:
            self.images.apply(step)
        failed = {} if self._encoder is None else self._encoder.apply(step)
        if self._canvases is not None:
            self._canvases.apply(step)
        failed |= self._add_to_sampler(step)
        self._copy(step.copies)
        self._copy_states([(self._num_seats + new.snapshot, new.seat) for new in step.new if new.snapshot >= 0])
        kept = [(seat, self._num_seats + snapshot) for seat, snapshot in step.snapshots]
        if not step.seats:
            if step.most_tokens:
                self.model.join(step.most_tokens, self.device)
            return StepHandle(step, _nothing, {}, failed)
        if self.model.lockstep is not None:
            self.model.lockstep.num_tokens = step.most_tokens
        rows = self._step_rows(step)
        if self.images is not None:
            failed |= self.images.failures(rows)
        self.rows.write_decoded(step)
        if step.drafts is not None:
            self.rows.write_drafts(step)
        targets = rows.seats[rows.logit_rows].astype(np.int32), self._positions(rows)
        first = None if self.rows.computed is None else self.rows.computed[to_device(rows.seats, self.device)]
        prompt_logprobs: dict[int, PendingLogprobs] = {}
        recorded = None
        if self._graphs is not None and self._graphs.fits(rows, self._ahead) and not self._has_images(rows):
            logits, hidden, recorded = self._graphs.run(rows)
            self._copy_states(kept)
            row_to_seat, position = all_to_device(targets, self.device)
        else:
            batch, (row_to_seat, position) = self._batches.build(rows, first, targets)
            if self._canvases is not None and len(rows.sampled):
                batch.canvas = CanvasTokens(batch.logits_indices, self._canvases.begin(rows))
            self.model.begin_step(batch)
            hidden = self.model.forward(batch)
            self._copy_states(kept)
            if not self.model.is_last:
                self.rows.advance(rows)
                return StepHandle(step, _nothing, {}, failed)
            prompt_logprobs = self._prompt_logprobs(rows, hidden)
            logits = hidden[:0]
            if len(rows.sampled):
                logits = self.model.logits(hidden[batch.logits_indices], batch.lora_of_logits)
        if first is not None:
            row_of = to_device(rows.logit_rows, self.device)
            position = position + first[row_of] - to_device(rows.first, self.device)[row_of]
        self.rows.advance(rows)
        launch = partial(self._finish, rows, _Computed(first, logits, hidden, recorded), row_to_seat, position, step)
        return StepHandle(step, launch, prompt_logprobs, failed)

    @torch.inference_mode()
    def _finish(
        self,
        rows: StepRows,
        computed: _Computed,
        row_to_seat: torch.Tensor,
        position: torch.Tensor,
        step: StepInput,
        masks: np.ndarray | None,
    ) -> Sampled:
        """Samples, and makes drafts. masks: of the logit rows of ``step.masked``."""
        sampled = Sampled(torch.empty(0, dtype=torch.int32))
        if len(rows.sampled):
            sample_rows = SampleRows(rows.seats[rows.logit_rows], self._positions(rows), row_to_seat, position, ahead=self._ahead)
            if self._diffusion is not None and (mask := self._diffusion.mask_token_id) is not None:
                computed.logits[:, mask] = -torch.inf
            elif self._canvases is not None:
                sample_rows.heat, sample_rows.noise = self._canvases.heat(), self._canvases.noise(position)
            elif rows.has_drafts:
                sample_rows.drafts, sample_rows.drafts_from_host = self._draft_rows(rows), step.drafts is not None
            if masks is not None:
                sample_rows.masks = Masks(rows.logit_rows_of(step.masked), masks)
            sampled = self._sample(computed.logits, sample_rows, rows.seats[rows.sampled])
        if self._proposer is not None:
            drafts = self._propose(self._proposer, rows, computed, step.num_proposals)
            if step.masked and step.num_proposals:  # who fills the masks of the next step has to know
                sampled = replace(sampled, drafts=drafts)
        return sampled

    def _propose(self, proposer: DeviceProposer, rows: StepRows, computed: _Computed, count: int) -> torch.Tensor:
        """int64 [R', count]: the drafts, which stand in the tokens of the rows, too."""
        own = rows.seats[rows.sampled]
        seats = to_device(own, self.device)
        if self.rows.computed is None:
            bounds = self.rows.num_computed[own]
            newest = to_device(bounds, self.device)
        else:
            bounds, newest = rows.lengths[rows.sampled], self.rows.computed[seats]
        proposer.propose(Verified(rows, computed.first, computed.hidden, computed.recorded, seats, newest, bounds), count)
        return self.rows.tokens[seats[:, None], newest[:, None] + 1 + torch.arange(count, device=self.device)]

    def _sample(self, logits: torch.Tensor, rows: SampleRows, seats: np.ndarray) -> Sampled:
        """seats: of the rows that yield tokens."""
        sampled = self.sampler.sample(logits, rows, self.rows.tokens)
        if self._canvases is not None:
            assert sampled.logits is not None and isinstance(self.model, Redrawn)
            self._canvases.keep(self.model.said(sampled.logits))
            sampled = replace(sampled, entropies=entropies(sampled.logits), logits=None)
        self.rows.tokens[rows.row_to_seat.long(), rows.position] = sampled.tokens.long().clamp_min(0)
        if rows.drafts is not None and sampled.accepted is not None:
            self.rows.retract(seats, rows.drafts.num_drafts - sampled.accepted)
        return sampled

    def _draft_rows(self, rows: StepRows) -> DraftRows:
        """Those of the step before where rows have as many drafts as there."""
        num_drafts = rows.num_logits[rows.sampled] - 1
        if self._drafts is None or not np.array_equal(num_drafts, self._drafts[0]):
            self._drafts = num_drafts, DraftRows.of(rows, self.device)
        return self._drafts[1]

    @torch.inference_mode()
    def token_logits(self, step: StepInput) -> torch.Tensor:
        """Applies the deltas and computes the rows; samples nothing, so that the next tokens are those of the requests. Logits
        [T, V] of every token of the step, in the model's dtype, valid until the next step."""
        self.rows.apply(step)
        if self.images is not None:
            self.images.apply(step)
        if self._encoder is not None:
            self._encoder.apply(step)
        rows = self._step_rows(step)
        if self._graphs is not None and self._graphs.fits(rows, self._ahead) and not self._has_images(rows):
            logits, _, _ = self._graphs.run(rows)
        else:
            batch, _ = self._batches.build(rows)
            self.model.begin_step(batch)
            logits = self.model.logits(self.model.forward(batch), batch.lora)
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
                if self._proposer is not None:
                    self._proposer.copy_blocks(index, src, dst)

    def _copy_states(self, pairs: list[tuple[int, int]]) -> None:
        """Of rows to rows, none of which is both."""
        if pairs:
            src, dst = to_device(np.array(pairs), self.device).unbind(1)
            for layer in self._states:
                self._copy_blocks(layer, src, dst)

    def _has_images(self, rows: StepRows) -> bool:
        """Whether any of the tokens is of an image: recordings know none. The last token of a prompt may be."""
        return self.images is not None and self.images.are_in(rows)

    def _step_rows(self, step: StepInput) -> StepRows:
        seats, counts = np.asarray(step.seats), np.asarray(step.num_tokens)
        first = self.rows.num_computed[seats] if step.num_computed is None else np.asarray(step.num_computed)
        return StepRows.of(seats, counts, first, np.asarray(step.num_logits))

    def _positions(self, rows: StepRows) -> np.ndarray:
        """int64 [R']: of the tokens that the logit rows decide: the next ones, or where a model denoises those that they are of."""
        return rows.logit_positions - (self._diffusion is not None)

    def _prompt_logprobs(self, rows: StepRows, hidden: torch.Tensor) -> dict[int, PendingLogprobs]:
        """For rows that asked: of each prompt token whose predecessor was computed in this step."""
        found = {}
        for row, seat in enumerate(rows.seats.tolist()):
            start, first = int(rows.bounds[row]), int(rows.first[row])
            count = min(int(rows.counts[row]), int(self.rows.num_prompt_tokens[seat]) - 1 - first)
            if count > 0 and self.sampler.wants_prompt_logprobs(seat):
                targets = self.rows.tokens[seat, first + 1 : first + 1 + count]
                project = partial(self._logits_of, seat)
                found[row] = self.sampler.prompt_logprobs(seat, project, hidden[start : start + count], targets)
        return found

    def _logits_of(self, seat: int, hidden: torch.Tensor) -> torch.Tensor:
        """Of hidden states of one request, for every token that a prompt may have."""
        slot = int(self.rows.lora_slots[seat])
        index = torch.full((len(hidden),), slot, dtype=torch.int32, device=self.device) if slot >= 0 else None
        logits = self.model.logits(hidden, None if index is None else LoraMeta(index, [slot]))
        unscored = self.model.num_unscored
        return logits if not unscored else torch.nn.functional.pad(logits, (0, unscored), value=-torch.inf)


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
