"""The engine: requests in, outputs out, one step at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

from ..clock import Clock
from ..config import EngineConfig
from ..lora_request import LoRARequest
from ..multimodal.encoder_cache import EncoderCache
from ..outputs import RequestOutput
from ..pooling_params import PoolingParams
from ..sampling_params import RequestOutputKind, SamplingParams
from ..speculation.depth import ScheduledDepth
from ..structured.matchers import Failures, Matchers
from .adapter_methods import AdapterMethods
from .adapters import Adapters
from .detokenizer import TokenTexts
from .diffusion import Denoising
from .errors import DeviceLostError, EngineDeadError
from .executor import BalancesExperts, Executor, Handle, HoldsAdapters, MaskedHandle
from .inputs import InputProcessor, check_prompt_tokens, check_tokens, follower_params, request_seed
from .kv_cache.manager import KVCacheManager
from .kv_cache.prefix import extra_keys
from .metrics import EngineInfo, EngineMetrics, EngineStats, Recorder, cache_settings
from .output_processor import OutputProcessor, RequestGroup
from .pooling import PoolingRules, generates
from .prompts import EngineInput, Prompt
from .request import FinishReason, Request, Status
from .scheduled import ScheduledStep
from .scheduler import Scheduler
from .speculation import Speculation

_logger = logging.getLogger(__name__)

Step = Callable[[], list[RequestOutput]]
"""``Engine.step``."""


class Engine(AdapterMethods):
    """Schedules requests, runs steps on an executor, and turns tokens into outputs. Single-threaded; never sleeps.

    inputs           of the model: tokenizes prompts, completes parameters, knows the end-of-sequence ids
    in_flight_steps  how many steps may be submitted and not yet committed
    in_flight        those, oldest first; the youngest may not be sampled yet (see ``_sample``)
    num_added        requests so far, of whose number seeds are made
    is_waiting       the last step had nothing to do, because grammars are still compiled
    errored          why the engine is dead: its device is lost; None while it serves
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        inputs: InputProcessor,
        clock: Clock,
        matchers: Matchers | None = None,
        speculation: Speculation | None = None,
        pooling: PoolingRules | None = None,
        denoising: Denoising | None = None,
    ) -> None:
        """matchers: where the executor takes masks; without, structured output is refused. speculation: unless it is as many drafts
        as the executor makes, in every step. pooling: of an engine whose requests end with their prompt; None: they generate.
        denoising: of a model whose tokens come canvas by canvas."""
        config.validate()
        self.config, self.executor, self.inputs, self.clock = config, executor, inputs, clock
        self.in_flight_steps = config.scheduler.in_flight_steps or executor.in_flight_steps
        if speculation is None and executor.num_drafts:
            speculation = Speculation(ScheduledDepth([[1, 1, executor.num_drafts]]), executor.vocab_size)
        self._speculation, self.pooling, self.denoising = speculation, pooling, denoising
        self._adapters = Adapters(config.lora, cast(HoldsAdapters, executor)) if config.lora.enabled else None
        self.manager, self.scheduler = self._new_books()
        self._recorder = Recorder(executor.max_model_len)
        self.processor = OutputProcessor(None if inputs.tokenizer is None else TokenTexts(inputs.tokenizer), self._recorder)
        self.errored: Exception | None = None
        self._watched_step: Step | None = None
        self.in_flight: deque[tuple[ScheduledStep, Handle]] = deque()
        self.is_waiting = False
        self._matchers = matchers
        self._is_sampled = True  # the youngest step in flight
        self._outputs: list[RequestOutput] = []  # not handed out yet
        self._failed: BaseException | None = None  # what the first half of this step failed with
        self.num_added = 0

    def add_request(
        self,
        request_id: str,
        prompt: EngineInput | Prompt,
        params: SamplingParams | PoolingParams | None = None,
        *,
        arrival_s: float | None = None,
        priority: int = 0,
        output_kind: RequestOutputKind | None = None,
        lora_request: LoRARequest | None = None,
    ) -> None:
        """Queues a request. Smaller ``priority`` goes first under the priority policy; ``output_kind`` replaces the parameters'.
        The adapter of ``lora_request`` is read when the request's turn comes; one that cannot be served ends it.
        Raises ValueError, and changes nothing, for one that could never be served, and EngineDeadError if the device was lost."""
        self._check_alive()
        if request_id in self.processor.groups:
            raise ValueError(f"a request with the id {request_id!r} is running; ids must be unique")
        adapter = self._find_adapter(lora_request)
        given = prompt if isinstance(prompt, EngineInput) else self.inputs.prompt(prompt)
        complete, pooling = self._complete(params, output_kind)
        if complete.seed is None:
            complete.seed = request_seed(self.config.seed, self.num_added)
        encoder_input = given.encoder_input
        if (prompts := self.inputs.image_prompts) is not None and prompts.views is not None:
            encoder_input, given = prompts.views.encoder_input(given.images), replace(given, images=())
        check_tokens(given.token_ids, complete, self.executor.vocab_size, self.inputs.placeholder)
        self.inputs.check_masks(given.token_ids)
        structured = complete.structured_outputs is not None
        if structured and self._matchers is None:
            kind = self.config.executor.kind
            raise ValueError(
                f"structured_outputs needs a tokenizer, and an executor with logits: executor.kind={kind} makes tokens up"
            )
        if self.pooling is not None and pooling is not None:
            given = self.pooling.admit(given, pooling, self.executor.max_model_len)
        if encoder_input is None and self.inputs.encoding is not None:
            raise ValueError("the model is an encoder-decoder, and the prompt has nothing that its encoder reads (encoder_prompt)")
        if encoder_input is not None and encoder_input.token_ids is not None:
            check_prompt_tokens(encoder_input.token_ids, self.executor.vocab_size)
        num_encoded = 0 if encoder_input is None else encoder_input.num_tokens
        max_total = self.scheduler.limits.longest_total(len(given.token_ids), complete.max_tokens, num_encoded)
        if given.images:
            assert self.scheduler.images is not None, "who reads no images made no such input"
            self.scheduler.images.check(given.images)
        arrival_s = self.clock.now() if arrival_s is None else arrival_s
        _logger.debug("request %s: %d prompt tokens, n=%d", request_id, len(given.token_ids), complete.n)
        group = RequestGroup(request_id, given.text, given.token_ids, complete, arrival_s)
        leader: Request | None = None
        for i in range(complete.n):
            own = complete if i == 0 else follower_params(complete, i)
            media = tuple((image.start, image.key) for image in given.images)
            name, keys = f"{i}_{request_id}", extra_keys(given.cache_salt, media=media)
            request = Request(name, given.token_ids, own, max_total, arrival_s, priority, keys, pooling)
            request.leader, request.adapter = leader, adapter
            request.images, request.encoder_input = given.images, encoder_input
            group.add(request, self.processor.texts)
            shares = encoder_input is None and self.denoising is None  # else each has keys and values of its own
            leader = leader or (request if shares else None)
        self.num_added += 1
        self.processor.groups[request_id] = group
        try:
            for sample in group.samples:
                if structured and self._matchers is not None:
                    self._matchers.add(sample.request)
                if self._adapters is not None and adapter is not None:
                    self._adapters.hold_back(sample.request)
                self.scheduler.add(sample.request)
        except BaseException:
            self.abort([request_id])
            raise

    def step(self) -> list[RequestOutput]:
        """Submits steps until enough are in flight, then takes in the oldest. Returns what it brought, finished requests
        included; empty while prompts are computed in parts, or if there is nothing to do.

        An exception ends the requests of the step that it came from, with outputs that tell it; what else was in flight comes with
        the next calls. Only what is no Exception (KeyboardInterrupt) is raised, and the engine can go on after it. Raises
        EngineDeadError if the device was lost before."""
        return (self._watched_step or self._step)()

    def watch(self, around: Callable[[Step], Step]) -> None:
        """From now on a step is ``around(step)``, which is to return what ``step`` does; the latest watcher is the outermost."""
        self._watched_step = around(self._watched_step or self._step)

    def _step(self) -> list[RequestOutput]:
        self.begin_step()
        return self.end_step()

    def begin_step(self) -> None:
        """The first half of ``step``: submits."""
        self._check_alive()
        self._failed = self._guarded(self._submit)

    def end_step(self) -> list[RequestOutput]:
        """The second half of ``step``: takes in what the oldest step in flight brings."""
        error, self._failed = self._failed, None
        if error is None:
            error = self._guarded(self._take)
        if error is not None and not isinstance(error, Exception):
            raise error
        outputs, self._outputs = self._outputs, []
        return outputs

    def end_all(self, error: Exception) -> list[RequestOutput]:
        """Ends every request with an error that came from elsewhere."""
        self._start_over(error)
        outputs, self._outputs = self._outputs, []
        return outputs

    def _guarded(self, half: Callable[[], BaseException | None]) -> BaseException | None:
        try:
            return half()
        except BaseException as caught:
            return self._start_over(caught)

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests now, and returns their last outputs. Ids that are not running are passed over."""
        ids = dict.fromkeys(request_ids)
        try:
            for request_id in ids:
                if group := self.processor.groups.get(request_id):
                    self._end(group, "abort")
        except BaseException as error:
            self._start_over(error)
            raise
        found = [output for output in self._outputs if output.request_id in ids]
        self._outputs = [output for output in self._outputs if output.request_id not in ids]
        return found

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything left to do."""
        return bool(self.scheduler.requests or self.in_flight or self._outputs)

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return self.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that hold none."""
        return self.scheduler.num_waiting

    @property
    def num_queued_tokens(self) -> int:
        """Tokens that are known, or being sampled, and that no submitted step computes."""
        return sum(request.num_tokens - request.num_computed for request in self.scheduler.requests)

    @property
    def kv_usage(self) -> float:
        """Fraction of the blocks that requests hold."""
        return self.manager.pool.usage

    def info(self) -> EngineInfo:
        executor = self.executor
        return EngineInfo(
            executor.max_model_len,
            executor.vocab_size,
            self.config.cache.block_size,
            executor.num_blocks,
            executor.weight_bytes,
            executor.groups,
            self.in_flight_steps,
            bool(self.config.cache.prefix_caching),
        )

    def stats(self) -> EngineStats:
        counters, images = vars(self.scheduler.counters), self.scheduler.images
        return EngineStats(
            **counters,
            **({} if images is None else images.totals()),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_not_ready=self.scheduler.waiting.num_not_ready,
            kv_usage=self.kv_usage,
            drafts=self._recorder.drafts,
        )

    def metrics(self) -> EngineMetrics:
        """All that there is to know about the requests so far, the kernels and the cache."""
        recorder, executor = self._recorder, self.executor
        running = (sample.request for group in self.processor.groups.values() for sample in group.samples)
        return EngineMetrics(
            self.stats(),
            dict(recorder.finished),
            recorder.corrupted,
            recorder.histograms(running),
            self.plan_report(),
            cache_settings(self.config.cache, executor.num_blocks, executor.max_model_len),
            {} if self._matchers is None else dict(self._matchers.num_served),
            None if self._adapters is None else (self.config.lora.max_loras, *self._adapters.names()),
        )

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        return self.manager.reset_prefix_cache()

    def expert_loads(self) -> dict[int, list[int]]:
        """Layer -> how often each of its experts was chosen since they moved, as ``parallel.expert_loads`` takes it; waits for the
        steps in flight. Raises ValueError unless ``parallel.eplb``."""
        return self._balancing().expert_loads()

    def rebalance_experts(self) -> tuple[float, float]:
        """Moves experts to where the loads since the last time are even, between two steps; no token depends on it. Returns how
        many times as much as the average rank the busiest has to do, before and after. Raises ValueError unless
        ``parallel.eplb``."""
        return self._balancing().rebalance_experts()

    def _balancing(self) -> BalancesExperts:
        if not self.config.parallel.eplb:
            raise ValueError("experts neither are counted nor move with parallel.eplb=false: set it, with parallel.ep")
        return cast(BalancesExperts, self.executor)

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """op -> what ran for it."""
        return self.executor.plan_report()

    def shutdown(self) -> None:
        """Frees the device; the engine is of no use afterwards."""
        self.executor.shutdown()

    def _submit(self) -> BaseException | None:
        """Returns what a submission failed with."""
        while len(self.in_flight) < self.in_flight_steps:
            if (failure := self._sample()) is not None:
                return failure
            if not self._is_sampled:
                break
            scheduled = self.scheduler.schedule(self.clock.now())
            waiting = self.scheduler.waiting
            unready, waiting.unready = waiting.unready, []
            self._end_failed(unready)
            if scheduled is None:
                break
            scheduled.submitted_s = self.clock.now()
            self.processor.scheduled(scheduled, scheduled.submitted_s)
            if self._matchers is not None and self._matchers.num_active:
                self._matchers.mark(scheduled)
            try:
                handle = self.executor.submit(scheduled.step_input)
            except BaseException as error:
                return self._fail(scheduled, error, submitted=False)
            self.in_flight.append((scheduled, handle))
            self._is_sampled = not scheduled.step_input.masked
        return None

    def _sample(self) -> BaseException | None:
        """The second phase of the youngest step in flight, if it is to come and can: what masked rows may take is known once the
        tokens before them are, which come while the step is computed. Returns what it failed with."""
        if self._matchers is None or self._is_sampled or len(self.in_flight) > 1:
            return None
        self._is_sampled = True
        scheduled, handle = self.in_flight[0]
        try:
            failures = self._matchers.sample(scheduled, cast(MaskedHandle, handle))
        except BaseException as error:
            self.in_flight.clear()
            return self._fail(scheduled, error, submitted=True)
        self._end_failed(failures)
        return None

    def _take(self) -> BaseException | None:
        """Returns what the oldest step failed with."""
        self.is_waiting = not self.in_flight and not self._outputs and bool(self.scheduler.waiting.num_not_ready)
        if not self.in_flight:
            waits_for_others = self.is_waiting or self._outputs or not self.scheduler.requests
            assert waits_for_others, "requests wait, and nothing can be scheduled"
            return None
        if (failure := self._sample()) is not None:
            return failure
        scheduled, handle = self.in_flight.popleft()
        try:
            output = handle.result()
        except BaseException as error:
            return self._fail(scheduled, error, submitted=True)
        for row, text in output.failed.items():
            self._end_rows([scheduled.rows[row]], text)
        committed, now_s = self.scheduler.commit(output), self.clock.now()
        misled: Failures = []
        if self._matchers is not None and self._matchers.num_active:
            misled = self._matchers.accept(committed)
        for request, _ in misled:  # its last tokens are as good as others
            request.finish_reason = None
        stopped, failed = self.processor.process(committed, now_s, self._outputs)
        if committed.pooled:
            self.processor.pooled(committed, now_s, self._outputs)
        self._recorder.step(scheduled, committed)
        if self._speculation is not None:
            self._recorder.observe(*self._speculation.observe(scheduled, output, now_s))
        for request in stopped:
            self.scheduler.finish(request, "stop", request.stop_reason)
        if self._matchers is not None and stopped:
            self._matchers.discard(stopped)
        for group, cause in failed:
            self._end(group, "error", cause)
        self._end_failed((request, error) for request, error in misled if request.finish_reason is None)
        return None

    def _fail(self, scheduled: ScheduledStep, error: BaseException, submitted: bool) -> BaseException:
        """Ends the requests of a step. Nothing of what it computed can be found in the prefix cache, where blocks get when their
        step is committed; what it wrote lies in blocks of its own requests."""
        if isinstance(error, DeviceLostError):
            return self._start_over(error)
        if isinstance(error, Exception):
            _logger.error("a step of %d requests failed", len(scheduled.rows), exc_info=error)
        self.scheduler.drop(scheduled, submitted)
        rows = scheduled.rows
        if self._adapters is not None:
            rows += self._adapters.lose(scheduled.step_input.lora_loads)
        self._end_rows(rows, error)
        return error

    def _start_over(self, error: BaseException) -> BaseException:
        """After an exception at a place where nobody knows what was done and what not: ends every request, and begins with empty
        books and no cached prefix. Results of steps in flight are not waited for."""
        if isinstance(error, Exception):
            _logger.error("the engine ends all its requests", exc_info=error)
        if isinstance(error, DeviceLostError):
            self.errored = error
        counters, groups = self.scheduler.counters, list(self.processor.groups.values())
        if self._speculation is not None:
            for request in self.scheduler.requests:
                self._speculation.stop(request)
        self.in_flight.clear()
        self._is_sampled = True
        if self._adapters is not None:
            self._adapters.reset()
        images = self.scheduler.images
        self.manager, self.scheduler = self._new_books()
        if images is not None and self.scheduler.images is not None:
            self.scheduler.images.replace(images)
        self.scheduler.counters = counters
        self.scheduler.release_all_seats()
        for group in groups:
            for sample in group.samples:
                if not sample.done:
                    sample.request.status, sample.request.blocks = Status.WAITING, []
            self._end(group, "error", error)
        return error

    def _end_failed(self, failures: Iterable[tuple[Request, Exception]]) -> None:
        """Ends requests, each by its own fault."""
        for request, error in failures:
            self._end(request.sample.group, "error", error, refused=isinstance(error, ValueError))

    def _end_rows(self, requests: list[Request], error: BaseException | str) -> None:
        for group in {request.sample.group: None for request in requests if request.status != Status.FINISHED}:
            self._end(group, "error", error)

    def _end(
        self, group: RequestGroup, reason: FinishReason, error: BaseException | str | None = None, refused: bool = False
    ) -> None:
        """Ends what is left of a user's request, and makes its last output; nothing if there is nothing left. ``refused``: the
        request asked for what cannot be."""
        if self.processor.groups.get(group.request_id) is not group:
            return
        if self._matchers is not None:
            self._matchers.discard(sample.request for sample in group.samples)
        for sample in group.samples:
            if not sample.done:
                self.scheduler.finish(sample.request, reason)
        if isinstance(error, BaseException):
            error = str(error) if refused else f"{type(error).__name__}: {error}"
        try:
            output = self.processor.ended(group, self.clock.now(), error, refused)
        except Exception as failure:  # of an abort: the text that was held back cannot be had
            output = self.processor.ended(group, self.clock.now(), f"{type(failure).__name__}: {failure}")
        self._outputs.append(output)

    def _new_books(self) -> tuple[KVCacheManager, Scheduler]:
        cache, executor = self.config.cache, self.executor
        manager = KVCacheManager(
            executor.groups,
            executor.num_blocks,
            cache.block_size,
            cache.prefix_caching is not False,
            cache.check_invariants,
            executor.drafts_read_ahead,
            executor.has_states,
            cache.state_snapshots,
        )
        scheduling = replace(self.config.scheduler, in_flight_steps=self.in_flight_steps)
        pools = self.pooling is not None  # so that a prompt may be as long as the model, if no token is to come after it
        longest = executor.max_model_len + pools
        reads = self.inputs.image_prompts
        images = None if reads is None else EncoderCache(scheduling, reads.whole)
        stages = executor.num_stages
        speculation, adapters, denoising = self._speculation, self._adapters, self.denoising
        return manager, Scheduler(scheduling, manager, longest, speculation, stages, pools, adapters, images, denoising)

    def _complete(
        self, params: SamplingParams | PoolingParams | None, output_kind: RequestOutputKind | None
    ) -> tuple[SamplingParams, PoolingParams | None]:
        """A request's own parameters. Raises ValueError for what this engine cannot do."""
        if self.pooling is not None:
            pooling = self.pooling.complete(params)
            return pooling.sampling(), pooling
        if isinstance(params, PoolingParams):
            raise ValueError(generates(self.config.model.name))
        return self.inputs.params(params, output_kind), None

    def _check_alive(self) -> None:
        if self.errored is not None:
            raise EngineDeadError(f"the engine's device is lost ({self.errored}): build a new engine") from self.errored
