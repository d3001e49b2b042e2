"""Who computes what in a step: one token budget, no distinction between prompts and decodes."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from itertools import repeat

from ..config import SchedulerConfig
from ..multimodal.encoder_cache import EncoderCache
from .adapters import Adapters
from .diffusion import Denoising
from .kv_cache.manager import KVCacheManager
from .limits import Limits
from .policies import POLICIES
from .request import FAILED_ROW, FinishReason, Request, Status
from .scheduled import Chunk, Committed, ScheduledStep, SchedulerCounters, new_request
from .speculation import Speculation
from .step import StepInput, StepOutput
from .waiting import WaitingQueue


class Scheduler:
    """Running requests first, in the policy's order; waiting ones only if nobody was preempted for the running.

    ``running`` is sorted by ``Request.order``: the last one is the victim when blocks run out, so that the first one always
    gets on and every request ends. Preemption takes everything; the request computes its tokens again when it resumes.

    released    seats that the next step releases
    speculation  None: a request that decodes computes one token per step
    pools       requests end with their prompt, and sample nothing
    adapters    whose requests wait until they have a slot; None: requests have none
    images      books of their embeddings; None: requests have none
    denoising   how tokens come canvas by canvas; None: they come one after the other
    num_stages  of a pipeline: with several, a request waits for its last token before it computes the next, and each step takes its
                share of those that decode, so that every stage has a step to work on
    """

    def __init__(
        self,
        config: SchedulerConfig,
        manager: KVCacheManager,
        max_model_len: int,
        speculation: Speculation | None = None,
        num_stages: int = 1,
        pools: bool = False,
        adapters: Adapters | None = None,
        images: EncoderCache | None = None,
        denoising: Denoising | None = None,
    ) -> None:
        self.config, self.manager, self.speculation, self.images = config, manager, speculation, images
        self.limits = Limits(config, manager, max_model_len, denoising)
        self._num_stages, self._pools, self._adapters, self.denoising = num_stages, pools, adapters, denoising
        self.counters = SchedulerCounters()
        self.requests: set[Request] = set()
        self.running: list[Request] = []
        self.num_running = 0
        self._policy = POLICIES[config.policy](config)
        self._max_chunk = config.max_chunk
        self.waiting = WaitingQueue()
        self._free_seats = list(range(config.max_num_seqs - 1, -1, -1))
        self.released: list[int] = []
        self._in_flight: deque[ScheduledStep] = deque()
        self._num_added = 0
        self._num_encoded = 0  # in this step

    @property
    def num_waiting(self) -> int:
        """Requests that hold no seat."""
        return len(self.requests) - self.num_running

    def add(self, request: Request) -> None:
        """Takes a request that passed ``limits.longest_total``. One with a leader waits until the leader's prompt is computed."""
        request.order = self._policy.order(request, self._num_added)
        self._num_added += 1
        self.requests.add(request)
        if self._adapters is not None and request.adapter is not None:
            self._adapters.add(request)
        if self.speculation is not None:
            self.speculation.start(request)
        if request.leader is None:
            self.waiting.add(request)
        else:
            request.leader.followers.append(request)

    def finish(self, request: Request, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Ends a request in whatever state it is; tokens that steps in flight sample for it will be dropped."""
        if request.status == Status.RUNNING:
            self._release(request)
        else:
            self.waiting.discard(request)
        request.status = Status.FINISHED
        request.finish_reason, request.stop_reason = reason, stop_reason
        if self.speculation is not None and request in self.requests:
            self.speculation.stop(request)
        if self._adapters is not None and request.adapter is not None and request in self.requests:
            self._adapters.finish(request)
        self.requests.discard(request)
        self._release_followers(request)

    def schedule(self, now_s: float = 0.0) -> ScheduledStep | None:
        """The next step, or None if nothing can be computed now. Counts its tokens as computed from here on. ``now_s``: on the
        clock of ``Request.arrival_s``."""
        if self.num_running != len(self.running):
            self.running = [r for r in self.running if r.status == Status.RUNNING]
        step = StepInput(self.counters.num_steps, [], [], [])
        scheduled = ScheduledStep(step, [], [])
        num_preemptions = self.counters.num_preemptions
        self._num_encoded = 0
        if self._adapters is not None:
            self._adapters.start_turn()
        if self.images is not None:
            self.images.start_step()
        num_drafts = self.speculation.depth.of(max(self.num_running, 1)) if self.speculation is not None else 0
        ahead = num_drafts if self.speculation is not None and self.speculation.proposer is None else 0  # see Speculation.drafts
        budget = self._schedule_running(scheduled, num_drafts, ahead)
        if num_preemptions == self.counters.num_preemptions:
            self._schedule_waiting(scheduled, budget, ahead, now_s)
        if not scheduled.decodes and not scheduled.chunks:
            return None
        scheduled.fill_rows()
        if self._adapters is not None:
            step.lora_loads = self._adapters.loads()
        if self.images is not None:
            self.images.fill(step)
        if self.speculation is not None:
            scheduled.num_drafts = num_drafts
            scheduled.fill_drafts(num_drafts, self.speculation.proposer is not None)
        if self.denoising is not None:
            scheduled.fill_drafts(0, from_host=True)
        if self._num_stages > 1:
            step.decoded = [request.token_ids[request.num_computed - 1] for request in scheduled.decodes]
        step.released, self.released = self.released, []
        self.counters.num_steps += 1
        self._in_flight.append(scheduled)
        return scheduled

    def commit(self, output: StepOutput) -> Committed:
        """Takes the output of the oldest step in flight: appends its tokens, offers full blocks for reuse, ends requests."""
        scheduled = self._in_flight.popleft()
        assert scheduled.step_input.step_id == output.step_id, "steps must come back in the order of submission"
        updated: list[Request] = []
        committed = Committed(updated)
        running = Status.RUNNING
        for request, token in zip(scheduled.decodes, output.token_ids):
            if request.status is not running and not self._deliver_stale(request):
                continue
            ids = request.token_ids
            ids.append(token)
            updated.append(request)
            length = len(ids)
            if length > request.next_event and request.status is running:
                self._event(request, length - 1)
            if length >= request.max_total or token in request.stop_ids:
                self._check_end(request)
                if token == FAILED_ROW:
                    committed.num_new[request] = 0
        if scheduled.chunks:
            self._commit_chunks(scheduled, output, committed)
        if output.logprobs and self.denoising is None:
            committed.logprobs = scheduled.logprobs(output)
        if output.drafts is not None:
            committed.proposed = dict(zip(scheduled.sampling, output.drafts))
        self.counters.num_output_tokens += len(updated) + sum(count - 1 for count in committed.num_new.values())
        return committed

    def drop(self, scheduled: ScheduledStep, submitted: bool) -> None:
        """Forgets a step in flight that failed; its requests, of which nobody knows what was computed, are to be finished next.
        If not even its submission came to an end, the next step releases again what this one was to release."""
        self._in_flight.remove(scheduled)
        if not submitted:
            self.released += scheduled.step_input.released
        if self.images is not None:
            self.images.lose(scheduled.step_input)

    def release_all_seats(self) -> None:
        """Lets the next step release every seat, whoever had it."""
        self.released = list(range(self.config.max_num_seqs))

    def _schedule_running(self, scheduled: ScheduledStep, num_drafts: int, ahead: int) -> int:
        """Returns what is left of the budget. ahead: drafts that the executor makes behind a request, if there is room."""
        budget, decodes, step = self.config.max_num_batched_tokens, scheduled.decodes, scheduled.step_input
        denoising = self.denoising
        # What a request that decodes is missing, if nothing is to be guessed behind it; -1 = none decodes.
        alone = -1 if self._pools or denoising is not None else 0 if num_drafts else 1
        staged = self._num_stages > 1
        share = -(-self.num_running // self._num_stages)
        for request in self.running:  # preemption takes from its end
            if not budget:
                break
            computed = request.num_computed
            missing = (request.num_tokens if denoising is None else denoising.end(request.num_tokens)) - computed
            if staged and missing == 1:
                if request.num_tokens > len(request.token_ids) or not share:
                    continue
                share -= 1
            if missing == alone:
                if request.num_tokens >= request.max_total:
                    continue  # its last token is in flight
                if computed >= request.capacity and not self._grow(request, computed + 1, step):
                    break
                request.num_computed = computed + 1
                request.num_tokens += 1
                decodes.append(request)
                budget -= 1
            elif missing:  # a pooling request may miss nothing: its end is in flight
                most = min(budget, self._max_chunk)
                drafts: Sequence[int] = ()
                room = 0
                if missing == 1 and not self._pools and denoising is None:
                    assert self.speculation is not None
                    found = self.speculation.drafts(request, min(num_drafts, most - 1))
                    if found is None:
                        continue  # until what is in flight is back
                    drafts, room = found
                count = _until(request.snapshot_ends, computed, min(missing, most)) + len(drafts)
                if denoising is not None and not (count := denoising.fit(request, computed, count)):
                    break
                if self.images is not None and request.images and not (count := self.images.fit(request, computed, count)):
                    continue
                if not self._grow(request, computed + count, step):
                    break
                if ahead:
                    self._grow_ahead(request, computed + count + ahead, step)
                self._append_chunk(scheduled, request, count, drafts, room)
                budget -= count
        return budget

    def _schedule_waiting(self, scheduled: ScheduledStep, budget: int, ahead: int, now_s: float) -> None:
        """In order; who is not ready lets the others by and keeps its place, who does not fit holds up those behind it."""
        waiting = self.waiting
        if not budget or not self._free_seats:
            return
        adapters = self._adapters
        if adapters is not None and adapters.is_settled(len(waiting)):
            return
        for request in waiting.ready():
            if (later := self._policy.postponed(request, now_s)) is not None:
                waiting.discard(request)
                request.order = later
                waiting.add(request)
                continue
            count = self._admit(request, budget, ahead, scheduled.step_input)
            if not count:
                return
            waiting.discard(request)
            self._append_chunk(scheduled, request, count)
            budget -= count
            if not budget or not self._free_seats:
                return
        if adapters is not None:
            adapters.end_turn(len(waiting))

    def _admit(self, request: Request, budget: int, ahead: int, step: StepInput) -> int:
        """Gives a waiting request blocks and a seat. Returns how many tokens it computes now; 0: it has to wait on."""
        manager, leader, num_known = self.manager, request.leader, request.num_tokens
        if self.denoising is not None:
            num_known = self.denoising.end(num_known)
        attended = () if request.encoder_input is None else request.encoder_input.images
        if self._num_encoded and self._num_encoded + request.num_encoded > self.config.encoder_budget and not attended:
            return 0
        if self.images is not None and not self.images.has_budget(attended):
            return 0
        images = self.images if request.images else None
        copies = None
        if leader is not None and leader.status == Status.RUNNING and not leader.num_preemptions:
            if images is not None and not images.fit(request, num_known - 1, 1):
                return 0
            copies = manager.fork(leader, request)
        if copies is not None:
            step.copies += copies
            start, count = num_known - 1, 1
            self.counters.num_forks += 1
        else:
            hit = manager.lookup(request)
            start, missing = hit.num_tokens, num_known - hit.num_tokens
            count = _until(hit.snapshot_ends, start, min(missing, budget, self._max_chunk))
            if self.denoising is not None:
                count = self.denoising.fit(request, start, count)
            if not count or (count < missing and not self.config.chunked_prefill):
                return 0
            if not manager.has_room(request, hit, start + count, self.limits.most_blocks(num_known, request.num_encoded)):
                return 0
            if images is not None and not (count := images.fit(request, start, count)):  # last, as it has them encoded
                return 0
            manager.admit(request, hit, start + count)
            self.counters.num_chunked_prefills += count < missing
        self._num_encoded += request.num_encoded
        if self.images is not None:
            self.images.attend(attended)
        request.leader = None
        request.status = Status.RUNNING
        request.num_computed, request.num_proposed = start, 0
        request.seat = self._free_seats.pop()
        if request.num_cached_tokens is None:
            self._count_admission(request, start, looked_up=copies is None)
        if request.followers:
            request.next_event = min(request.next_event, request.num_prompt_tokens)
        insort(self.running, request)
        self.num_running += 1
        slot = -1 if self._adapters is None or request.adapter is None else self._adapters.take(request)
        step.new.append(new_request(request, slot))
        if ahead:
            self._grow_ahead(request, start + count + ahead, step)
        return count

    def _count_admission(self, request: Request, num_cached_tokens: int, looked_up: bool) -> None:
        request.num_cached_tokens = num_cached_tokens
        self.counters.num_prompt_tokens += request.num_prompt_tokens
        self.counters.num_cached_prompt_tokens += num_cached_tokens
        if looked_up and self.manager.reads_prefix(request):
            self.counters.prefix_query_tokens += request.num_prompt_tokens
            self.counters.prefix_hit_tokens += num_cached_tokens

    def _append_chunk(
        self, scheduled: ScheduledStep, request: Request, count: int, drafts: Sequence[int] = (), room: int = 0
    ) -> None:
        if self.denoising is not None:
            self._append_canvases(scheduled, request, count, self.denoising)
            return
        request.num_computed += count
        ends = request.num_computed == request.num_tokens + len(drafts) and not self._pools
        num_logits = 1 + len(drafts) if ends else 0
        request.num_tokens += num_logits
        if (row := self.manager.snapshot(request)) is not None:
            scheduled.step_input.snapshots.append((request.seat, row))
        scheduled.chunks.append(Chunk(request, count, request.num_computed, num_logits, drafts, room))

    def _append_canvases(self, scheduled: ScheduledStep, request: Request, count: int, denoising: Denoising) -> None:
        """A chunk of a request that denoises. It brings the tokens that the executor cannot know. If it ends with the canvas behind
        the known tokens, which counts as not computed, it has a logit for each of the places there."""
        first, end = request.num_computed, request.num_computed + count
        denoises = end == denoising.end(request.num_tokens)
        request.num_computed = end - denoising.canvas_size * denoises
        tokens = denoising.tokens(request, max(first, request.num_prompt_tokens), end)
        scheduled.chunks.append(Chunk(request, count, end, (end - request.num_tokens) * denoises, tokens))
        self.counters.num_denoising_passes += denoises

    def _grow(self, request: Request, num_tokens: int, step: StepInput) -> bool:
        """Blocks for ``num_tokens`` tokens, at the cost of the last in order; False if that was the request itself."""
        while (grown := self.manager.grow(request, num_tokens)) is None:
            victim = self.running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        step.new_blocks += [(request.seat, group, blocks) for group, blocks in grown]
        return True

    def _grow_ahead(self, request: Request, num_tokens: int, step: StepInput) -> None:
        """Room for drafts, at nobody's cost: without it they are worse, and nothing else."""
        grown = self.manager.grow(request, min(num_tokens, request.max_total - 1)) or ()
        step.new_blocks += [(request.seat, group, blocks) for group, blocks in grown]

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.status = Status.PREEMPTED
        request.num_computed = 0
        request.canvas = None
        request.num_preemptions += 1
        self.counters.num_preemptions += 1
        request.num_stale_steps = sum(
            request in step.decodes or any(chunk.request is request for chunk in step.chunks) for step in self._in_flight
        )
        if not request.num_stale_steps:
            self.waiting.add(request)

    def _release(self, request: Request) -> None:
        self.manager.free(request)
        if self.images is not None:
            self.images.release(request)
        self.released.append(request.seat)
        self._free_seats.append(request.seat)
        request.seat = -1
        self.num_running -= 1

    def _release_followers(self, request: Request) -> None:
        for follower in request.followers:
            if follower.status != Status.FINISHED:
                self.waiting.add(follower)
        request.followers = []

    def _deliver_stale(self, request: Request) -> bool:
        """For a row whose request left its seat since the step was submitted: whether its token still counts. It does after a
        preemption, because the request resumes only when all its steps in flight have delivered."""
        if request.status == Status.FINISHED:
            return False
        request.num_stale_steps -= 1
        if not request.num_stale_steps:
            self.waiting.add(request)
        return True

    def _commit_chunks(self, scheduled: ScheduledStep, output: StepOutput, committed: Committed) -> None:
        first, num_decodes = 0, len(scheduled.decodes)
        tokens = output.token_ids[num_decodes:]
        accepted = iter(output.num_accepted[num_decodes:]) if output.num_accepted is not None else repeat(0)
        for row, chunk in enumerate(scheduled.chunks, num_decodes):
            request, count = chunk.request, chunk.num_logits
            if count and self.denoising is None:
                count = 1 + next(accepted)
            first, new = first + count, tokens[first : first + count]
            num_wrong = chunk.num_logits - count
            if request.status == Status.RUNNING:
                request.num_computed -= num_wrong
                if row in output.prompt_logprobs:
                    committed.prompt_logprobs.append((request, chunk.end - chunk.num_tokens, output.prompt_logprobs[row]))
            elif not self._deliver_stale(request):
                continue
            end = chunk.end
            if self.denoising is not None:
                if count:
                    committed.settle(request, self.denoising.settle(request, output, slice(first - count, first)))
                end = request.num_computed
            elif chunk.num_logits:
                assert 0 <= num_wrong < chunk.num_logits, "a row brings its right drafts and one token more"
                request.num_tokens -= num_wrong
                committed.add(request, request.append(new))
                end = len(request.token_ids) - 1
            if end >= request.next_event and request.status == Status.RUNNING:
                self._event(request, end)
            if chunk.num_logits:
                self._check_end(request)
            elif self._pools and chunk.end == request.num_prompt_tokens:
                committed.pooled.append((request, output.pooled.get(row)))
                self.finish(request, "stop")

    def _event(self, request: Request, num_computed: int) -> None:
        self.manager.advance(request, num_computed)
        if request.followers:
            if num_computed >= request.num_prompt_tokens:
                self._release_followers(request)
            else:
                request.next_event = min(request.next_event, request.num_prompt_tokens)

    def _check_end(self, request: Request) -> None:
        """Ends a request that its last token ends."""
        reason, token = request.ending(), request.token_ids[-1]
        if reason == "error":
            request.token_ids.pop()
            self.finish(request, reason)
        elif reason == "stop":
            self.finish(request, reason, token if token in (request.params.stop_token_ids or ()) else None)
        elif reason is not None:
            self.finish(request, reason)


def _until(ends: Sequence[int], start: int, count: int) -> int:
    """How many of ``count`` tokens from ``start`` on a chunk takes, so that it passes none of ``ends``."""
    return next((end - start for end in ends if start < end < start + count), count)
