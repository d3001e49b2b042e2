"""A device that only takes time: a step costs what its kernel calls do, under a virtual clock."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..clock import Clock, VirtualClock
from ..config import EngineConfig
from ..engine.attention_rows import canvas_rows, encoded_rows, num_decodes, seen_from
from ..engine.encoding import View
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..engine.step import StepInput, StepOutput
from ..models.ranks import stages
from ..models.read import ModelInfo
from ..multimodal.items import ImageItem, overlaps
from .cost_model import CONTEXT_GRID, DecodeRows, DecodesAhead, OpTime, StepWork
from .device_memory import Holding, num_blocks
from .drafting import Drafting
from .encoders import Encoders
from .library_model import place_library_model
from .observed import Observer
from .placement import Placement
from .pseudo import PassPlan, PseudoCanvases, PseudoTokens
from .shape import native
from .simulated_device import simulated_device
from .timers import Timers
from .towers import Tower


class SimulatedStep:
    """A step that is done at ``end_s``; waiting for it moves the clock there."""

    __slots__ = ("_clock", "end_s", "output")

    def __init__(self, output: StepOutput, end_s: float, clock: VirtualClock) -> None:
        self.output, self.end_s, self._clock = output, end_s, clock

    def result(self) -> StepOutput:
        self._clock.advance_to(self.end_s)
        return self.output

    def later(self, output: StepOutput, end_s: float) -> SimulatedStep:
        """Another one on its clock."""
        return SimulatedStep(output, end_s, self._clock)


class SimulatedSteps:
    """The next steps of an executor with one stage, given that an engine submits each before it takes in the oldest in flight, and
    that each decodes one token of the rows in ``seats`` (int64 [R]).

    done_s  when each has been taken in
    """

    def __init__(self, executor: SimulatedExecutor, in_flight: Sequence[SimulatedStep], seats: np.ndarray) -> None:
        self._executor, self._in_flight, self._seats = executor, in_flight, seats
        self._ends_s = [step.end_s for step in in_flight]
        self._cost = executor.decodes_ahead(seats)
        self.done_s: list[float] = []

    def look(self, count: int, enough: int, until_s: float) -> None:
        """Finds ``done_s`` of so many steps, as ``RunsAhead.steps_ahead`` says."""
        executor, cost, ends_s, now_s = self._executor, self._cost, self._ends_s, self._executor.clock.now()
        idle_from_s = list(executor.idle_from_s)
        for i in range(count):
            now_s, end_s = executor.advance(((cost.next_s(), cost.launches),), 0.0, now_s, idle_from_s, executor.noise_ahead(i))
            ends_s.append(end_s)
            if now_s < ends_s[i]:
                now_s = ends_s[i]
            self.done_s.append(now_s)
            if i + 1 >= enough and now_s >= until_s:
                break

    def take(self, count: int) -> tuple[list[list[int]], list[SimulatedStep]]:
        """As StepsAhead has it."""
        num_in_flight, ends_s = len(self._in_flight), self._ends_s
        self._cost.take(count)
        tokens = self._executor.skip(self._seats, num_in_flight, count, ends_s[num_in_flight + count - 1])
        steps = [
            step.later(StepOutput(step.output.step_id + count, tokens[:, i].tolist()), ends_s[i])
            for i, step in enumerate(self._in_flight, count)
        ]
        return tokens[:, :count].tolist(), steps


class SimulatedExecutor:
    """The configured model on as many of ``executor.device`` as ``parallel.tp`` and ``parallel.pp`` say. Tokens are pseudo-random.

    A submission takes the host ``step_overhead_s`` and the first stage's launches; a step is done when the device is, and not
    before the host has launched it all. Stages work on one step each, in the order of submission; one hands a step on to the next,
    and a request's next token waits for its last one. So the host's time hides behind the devices' with several steps in flight;
    where a model denoises there is but one, and no step is a recording.
    """

    @classmethod
    def open(cls, config: EngineConfig, model: ModelInfo, clock: Clock) -> SimulatedExecutor:
        assert isinstance(clock, VirtualClock), "the table of executors says so"
        return cls(config, model, clock)

    @staticmethod
    def runs_on(config: EngineConfig) -> tuple[str, str]:
        from ..plan import op_costs

        device, parallel = simulated_device(config.executor, op_costs()), config.parallel
        count = parallel.tp * parallel.pp * parallel.dp
        return f"simulated {f'{count} x ' if count > 1 else ''}{device.name}", device.arch

    def __init__(self, config: EngineConfig, model: ModelInfo, clock: VirtualClock) -> None:
        from ..plan import op_costs

        costs = op_costs()
        device = simulated_device(config.executor, costs)
        self._timers = Timers(config.executor, device, costs)
        speculation, rule = config.speculative_config.num_speculative_tokens > 0, config.speculative_config.acceptance_rule
        self._drafting = Drafting(model, config, self._timers) if speculation else None
        self._tower = Tower.of(config, model)
        encoders = Encoders.of(config.model, model) if self._tower is None else self._tower.encoders(config, model)
        in_library = model.architecture is None and model.pooling is None
        architecture = None if in_library else native(model, config)
        if architecture is None:
            self._placement = place_library_model(model, config, self._timers, rule)
        else:
            cuts = stages(architecture, config.parallel.pp)
            self._placement = Placement.of_native(model, architecture, config, cuts, self._timers, rule, encoders)
        self._timers.check_scaled()
        self._observer = Observer.of(model, config, [timer.op for timer in self._timers.bound])
        self._draft_observer = self._observer.beside(self._drafting.model) if self._observer and self._drafting else None
        self.call_times = None if self._observer is None else self._observer.times
        self.groups, self.vocab_size, self.max_model_len = self._placement.groups, self._placement.vocab_size, model.max_model_len
        element = ELEMENT_BYTES[model.dtype]
        activations = max(self._placement.activations, encoders.activation_bytes(element))
        if self._tower is not None:  # embeddings of images, which are kept
            assert architecture is not None, "the native decoder alone reads images"
            activations += config.scheduler.encoder_cache * architecture.hidden_size * element
        longest = max(self.max_model_len, model.most_encoded(config.cache.block_size))
        self.num_blocks = num_blocks(config, len(self.groups), longest, self._held(), activations, device.memory_bytes)
        self.num_stages = len(self._placement.holdings)
        self.in_flight_steps = max(self.num_stages, 2)
        self.draft_max_model_len, self.drafts_read_ahead = None, False
        self.num_drafts = config.speculative_config.num_speculative_tokens
        self.has_states = architecture is not None and architecture.has_states
        self._is_whole = model.vision is not None and model.vision.whole
        self._has_experts = architecture is not None and architecture.has_visual_experts
        self._attends_encoded = architecture is not None and (bool(architecture.family.encoder) or architecture.sees_images)
        self.weight_bytes = self.nominal_weight_bytes = round(config.parallel.tp * sum(held.weights for held in self._held()))

        self._device, self._graphs, self._noise = device.name, config.graphs, config.executor.noise
        free = config.executor.calibration == "free"
        self._overhead_s, self._launch_s = (0.0, 0.0) if free else (config.executor.step_overhead_s, config.executor.launch_s)
        self._steps_at_once = config.scheduler.in_flight_steps or self.in_flight_steps
        self._recordings = sorted(config.graphs.batch_sizes or ())
        self._num_seats, self._seed, self._plan = config.scheduler.max_num_seqs, config.seed, None
        self._block_size = config.cache.block_size
        if model.diffusion is not None:
            self._plan = PassPlan(model.diffusion, config.diffusion, config.executor.passes_per_canvas)
        self._largest_recording = self._recordings[-1] if self._recordings else self._num_seats
        self._start(clock, 0)

    def _start(self, clock: VirtualClock, index: int) -> None:
        """With a device that is idle and knows no request."""
        self.clock = clock
        self._rng = np.random.default_rng((self._seed & (2**64 - 1), index))
        self._noises: list[float] = []  # drawn, of steps to come
        rates = self._drafting.rates if self._drafting else None
        self._tokens = PseudoTokens(self._num_seats, self.vocab_size, rates)
        if self._plan is not None:
            self._tokens = PseudoCanvases(self._num_seats, self.vocab_size, self._plan)
        self.idle_from_s = [clock.now()] * self.num_stages
        self._token_at_s = np.zeros(self._num_seats)
        self._encoded = np.zeros(self._num_seats, dtype=np.int64) if self._attends_encoded else None
        self._views: dict[int, tuple[View, ...]] = {}
        self._images: dict[int, tuple[ImageItem, ...]] | None = {} if self._is_whole or self._has_experts else None
        self._context = 1
        self._periods: dict[tuple[int, int, int], float] = {}

    def replica(self, clock: VirtualClock, index: int) -> SimulatedExecutor:
        """Number ``index`` of several on equal devices: what was timed is common to all, and the report tells of all together."""
        other = copy.copy(self)
        other._start(clock, index)
        return other

    def submit(self, step: StepInput) -> SimulatedStep:
        tokens, seats = self._tokens, np.array(step.seats)
        tokens.admit(step.new)
        if self._encoded is not None:
            for new in step.new:
                given = new.encoder_input
                self._encoded[new.seat] = 0 if given is None else given.num_seen
                self._views[new.seat] = () if given is None else given.views
        if self._images is not None:
            self._images |= {new.seat: new.images for new in step.new}
        contexts = tokens.contexts(step, seats)
        work = self._work(step, contexts) if self._plan is None else self._canvas_work(self._plan, step, contexts)
        times, passes = self._placement.step(work), list[StepWork]()
        if self._drafting is not None:
            passes = self._drafting.passes(work, contexts[np.array(step.num_logits) > 0], step.num_proposals)
            drafting_s, launches = self._drafting.step(passes)
            times[-1] = times[-1][0] + drafting_s, times[-1][1] + launches
            self._context = int(contexts.mean())
        if self.num_stages == 1:
            end_s = self._submit(times, 0.0)
        else:
            self._token_at_s[[request.seat for request in step.new]] = 0.0
            end_s = self._submit(times, float(self._token_at_s[seats].max()))
            self._token_at_s[seats[np.array(step.num_logits) > 0]] = end_s
        if self._observer is not None:
            start_s = self._observer.add(self._placement.stage_costs, work, end_s - sum(device_s for device_s, _ in times))
            if self._drafting is not None and self._draft_observer is not None:
                for one in passes:
                    start_s = self._draft_observer.add(self._drafting.stage_costs, one, start_s)
        return SimulatedStep(tokens.sample(step, seats, contexts), end_s, self.clock)

    def step_time(self, num_running: int, num_drafts: int) -> float:
        """As PredictsSteps has it, at the mean context of the last step."""
        key = -(-num_running // self.num_stages), num_drafts, self._context // CONTEXT_GRID
        if key not in self._periods:
            self._periods[key] = self._period(*key[:2])
        return self._periods[key]

    def _period(self, num_rows: int, num_drafts: int) -> float:
        """Of equal steps, one after the other."""
        assert self._drafting is not None
        tokens, contexts = [1 + num_drafts] * num_rows, np.full(num_rows, self._context + num_drafts)
        nobody = [-1] * num_rows  # who has no images
        work = self._work(StepInput(0, nobody, tokens, tokens), contexts)
        times = self._placement.step(work, counted=False)
        drafting_s, launches = self._drafting.step(self._drafting.passes(work, contexts, num_drafts), counted=False)
        times[-1] = times[-1][0] + drafting_s, times[-1][1] + launches
        launched_s, end_s = self.advance(times, 0.0, 0.0, [0.0] * self.num_stages, 1.0)
        return max(launched_s, end_s / self._steps_at_once, *(device_s for device_s, _ in times))

    def steps_ahead(
        self, in_flight: Sequence[SimulatedStep], seats: Sequence[int], count: int, enough: int, until_s: float
    ) -> SimulatedSteps | None:
        """As RunsAhead has it; None for several stages, of which each has a step of its own in flight, and where every step is to
        be seen."""
        if self.num_stages > 1 or self._observer is not None:
            return None
        steps = SimulatedSteps(self, in_flight, np.array(seats))
        steps.look(count, enough, until_s)
        return steps

    def decodes_ahead(self, seats: np.ndarray) -> DecodesAhead:
        """What the next steps cost, if each decodes one token of these rows."""
        count = len(seats)
        step = StepInput(0, seats.tolist(), [1] * count, [1] * count)
        return self._placement.ahead(self._work(step, self._tokens.lengths[seats] + 1))

    def skip(self, seats: np.ndarray, num_in_flight: int, count: int, idle_from_s: float) -> np.ndarray:
        """uint64 [R, num_in_flight + count]: tokens of the steps in flight and of ``count`` more, that decode a token of every row,
        and which the device has worked off at ``idle_from_s``."""
        self.idle_from_s = [idle_from_s]
        self._noises = self._noises[count:]
        return self._tokens.ahead(seats, num_in_flight, count)

    def noise_ahead(self, index: int) -> float:
        """Factor on the times of a step to come; 0: the next one."""
        if not self._noise:
            return 1.0
        while len(self._noises) <= index:
            self._noises.append(self._rng.lognormal(sigma=self._noise))
        return self._noises[index]

    def advance(
        self, times: Sequence[tuple[float, int]], tokens_at_s: float, now_s: float, idle_from_s: list[float], noise: float
    ) -> tuple[float, float]:
        """Lets a step that is submitted at ``now_s`` pass through the stages. times: of each, seconds on its devices and launches;
        tokens_at_s: when the last of its rows' tokens is known; idle_from_s: of each stage, and changed. Returns when the host has
        launched it, and when it is done."""
        launched_s = submitted_s = now_s + noise * self._overhead_s
        arrived_s = max(submitted_s, tokens_at_s)
        for stage, (device_s, launches) in enumerate(times):
            launch_s = noise * launches * self._launch_s
            start_s = max(idle_from_s[stage], arrived_s)
            if stage == 0:
                launched_s = submitted_s + launch_s  # the host runs ahead of the device
                arrived_s = max(start_s + noise * device_s, launched_s)
            else:
                arrived_s = start_s + max(noise * device_s, launch_s)
            idle_from_s[stage] = arrived_s
        return launched_s, arrived_s

    def op_times(self) -> dict[str, OpTime]:
        """op -> simulated seconds and calls so far, on one device of each stage."""
        found = self._placement.op_times()
        for op, time in self._drafting.placed.op_times().items() if self._drafting and self._drafting.placed else ():
            found[op].seconds += time.seconds
            found[op].calls += time.calls
        return found

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """op -> the device that was assumed, on what its time rests, and what it took."""
        report = {}
        for op, time in self.op_times().items():
            chosen, origin = self._timers.origin(op)
            found = {"chosen": chosen, "origin": origin, "version": "", "calls": time.calls, "seconds": time.seconds}
            report[op] = {"impl": f"simulated {self._device}", **found}
        return report

    def shutdown(self) -> None:
        """There is nothing to free."""

    def _work(self, step: StepInput, contexts: np.ndarray) -> StepWork:
        """Rows come in the order of their kinds: one token, one token and drafts, prompts."""
        counts, num_rows, num_samples = step.num_tokens, len(step.num_tokens), len(step.num_tokens) - step.num_logits.count(0)
        ones = first_chunk = counts.count(1)
        num_logits = sum(step.num_logits)
        if num_logits > num_samples:
            first_chunk += sum(each > 1 for each in step.num_logits)
        if step.new and (whole := contexts[:ones] == 1).any():  # prompts of one token, which are no decodes; nor is what follows
            ones = first_chunk = int(whole.argmax())
        decodes = [DecodeRows(1, contexts[:ones])] if ones else []
        if first_chunk > ones:
            lens, drafting = np.array(counts[ones:first_chunk]), contexts[ones:first_chunk]
            decodes += [DecodeRows(each, drafting[lens == each]) for each in sorted(set(counts[ones:first_chunk]))]
        recorded = (
            self._graphs.enabled
            and first_chunk == num_samples == num_rows
            and len(decodes) == 1
            and num_rows <= self._largest_recording
        )
        num_tokens = sum(counts)
        if recorded and self._recordings:
            num_tokens = decodes[0].tokens * self._recordings[bisect_left(self._recordings, num_rows)]
        work = StepWork(num_tokens, num_logits, decodes, counts[first_chunk:], contexts[first_chunk:].tolist(), recorded)
        if self._tower is not None:
            work.encoded = [self._tower.item(image) for image in step.images]
        if self._images is not None:
            images = [self._images.get(seat, ()) for seat in step.seats]
            found = overlaps(images, (contexts - counts).tolist(), contexts.tolist())
            if self._has_experts:
                work.num_visual = sum(end - start - (end == image.end) for _, image, start, end in found)
            if self._is_whole:
                work.whole_lens = [end - start for _, _, start, end in found]
                work.whole_ctx_lens = [end for *_, end in found]
        if self._encoded is not None:
            work.stored = [new.encoder_input.num_vectors for new in step.new if new.encoder_input is not None]
            if self._tower is None:
                work.encoded = work.stored
            views, tokens = [self._views.get(seat, ()) for seat in step.seats], np.array(counts)
            _, lens, _, seen = encoded_rows(tokens, contexts - tokens, self._encoded[step.seats], views)
            work.cross_decodes = [DecodeRows(1, seen[:ones])] if ones else []  # rows of one token are not cut
            work.cross_lens, work.cross_ctx_lens = lens[ones:].tolist(), seen[ones:].tolist()
        return work

    def _canvas_work(self, plan: PassPlan, step: StepInput, contexts: np.ndarray) -> StepWork:
        """Where a model denoises, of which no step is recorded: in rows of a canvas each, unless canvases are drawn anew; their
        tokens attend twice."""
        counts, size, redraws = np.array(step.num_tokens), plan.canvas_size, plan.diffusion.redraws is not None
        first = contexts - counts
        if not redraws:
            causal = self._tokens.num_prompt[step.seats] // size * size * plan.diffusion.causal_prompt
            _, counts, first = canvas_rows(counts, first, size, causal)
        n, lengths = num_decodes(counts, first), first + counts
        decodes = [DecodeRows(each, lengths[:n][counts[:n] == each]) for each in np.unique(counts[:n]).tolist()]
        work = StepWork(sum(step.num_tokens), sum(step.num_logits), decodes, counts[n:].tolist(), lengths[n:].tolist())
        ends = contexts[np.array(step.num_logits) > 0]
        if redraws and len(ends):
            work.whole_lens, work.whole_ctx_lens = [size] * len(ends), ends.tolist()
            seen = ends if (window := self._placement.canvas_window) is None else ends - seen_from(ends, size, window)
            work.whole_window_lens = seen.tolist()
            if (seen < ends).any():
                work.num_taken = len(ends) * -(-int(seen.max()) // self._block_size) * self._block_size
        return work

    def _submit(self, times: Sequence[tuple[float, int]], tokens_at_s: float) -> float:
        """Returns when the step is done."""
        launched_s, end_s = self.advance(times, tokens_at_s, self.clock.now(), self.idle_from_s, self.noise_ahead(0))
        self._noises = self._noises[1:]
        self.clock.advance_to(launched_s)
        return end_s

    def _held(self) -> list[Holding]:
        """Per stage; a draft model lies beside the last."""
        *others, last = self._placement.holdings
        if self._drafting is not None and self._drafting.placed is not None:
            (draft,) = self._drafting.placed.holdings
            last = Holding(last.weights + draft.weights, last.token + draft.token)
        return [*others, last]
