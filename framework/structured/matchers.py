"""The matchers of an engine's requests, from the compilation of their grammars to their last token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from time import perf_counter, thread_time
from typing import Final, NamedTuple, cast

import numpy as np

from ..bitmask import num_words, set_bits
from ..engine.executor import MaskedHandle
from ..engine.request import Request, Status
from ..engine.scheduled import Committed, ScheduledStep
from .backends.protocol import Grammar, Matcher
from .compiler import GrammarCompiler, Job
from .watched import MAX_STUCK, WatchedThread

MAX_FILL_S: Final = 0.2
"""CPU time of one mask, after which its request ends, and of the masks of a step, after which the dearest do: all others wait
meanwhile. Of the masks of a step that took half of it, the next ones are filled one by one, to see which are dear."""

SHORT_FILL_S: Final = 1e-3
"""Time of the masks of a step, of libraries that are bounded, below which the engine's own thread fills them: to wake another and
hand it the interpreter costs a third of that, and what it computes it takes from the kernels of a step on a CPU."""

LEADS_NOWHERE: Final = "structured_outputs: the grammar leads nowhere: no token fits what was generated"

Failures = list[tuple[Request, Exception]]


class Matchers:
    """Knows requests only; where they compute, and whether they were preempted, is nothing to it. Requests without a constraint do
    not come here. What a request may take next is computed as soon as its tokens are known, in a thread beside the caller unless
    it is little.

    num_active  requests that have a matcher: while it is 0, steps need not ask
    num_served  name of a backend -> requests that it had a grammar for
    """

    def __init__(self, compiler: GrammarCompiler, vocab_size: int, num_forced: int = 0) -> None:
        """num_forced: how many of the tokens that must come next to know of each request, at most."""
        self.compiler, self._num_forced = compiler, num_forced
        self.num_served: Counter[str] = Counter()
        self._num_words = num_words(vocab_size)
        self._jobs: dict[Request, Job] = {}
        self._active: dict[Request, _Constraint] = {}
        self._thread = WatchedThread(MAX_FILL_S)
        self._filling: list[list[_Move]] = []  # what each call of the thread moves
        self._computing: set[Grammar] = set()
        self._filled: tuple[list[_Constraint], np.ndarray] = [], np.empty((0, self._num_words), np.int32)  # last, if without drafts
        self._held = np.zeros(self._num_words, dtype=np.int32)  # stop tokens that some request did not want at once
        self._held_words: list[int] = []  # which of these are not 0

    @property
    def num_active(self) -> int:
        return len(self._active)

    def add(self, request: Request) -> None:
        """Begins to compile the request's grammar; it is ready when that is done. Asking it raises ValueError if it cannot be.
        Raises RuntimeError while too many masks of requests that ended are still computed."""
        assert request.params.structured_outputs is not None
        if self._thread.num_stuck > MAX_STUCK:
            raise RuntimeError("structured_outputs: grammars of requests before still take all there is: try again later")
        self._jobs[request] = self.compiler.request(request.params.structured_outputs.spec())
        request.is_ready = partial(self._is_ready, request)

    def discard(self, requests: Iterable[Request]) -> None:
        """Forgets requests that ended, if it knows them."""
        for request in requests:
            self._active.pop(request, None)
            if (job := self._jobs.pop(request, None)) is not None:
                self.compiler.release(job)

    def mark(self, step: ScheduledStep) -> None:
        """Makes those rows of a step masked that sample, and whose request has a matcher."""
        active, first_chunk = self._active, len(step.decodes)
        rows = [row for row, request in enumerate(step.decodes) if request in active]
        rows += [row for row, c in enumerate(step.chunks, first_chunk) if c.num_logits and c.request in active]
        step.step_input.masked = rows

    def accept(self, committed: Committed) -> Failures:
        """Has the tokens of a step taken, and the masks after them filled; forgets the requests that ended with it. Returns those
        that could not go on behind drafts that were right."""
        moves: list[_Move] = []
        failures: Failures = []
        for request in committed.requests:
            if (constraint := self._active.get(request)) is None:
                continue
            if request.status == Status.FINISHED:
                del self._active[request]
                if request.finish_reason == "error" and constraint.leads_nowhere(committed.num_new.get(request, 1), request):
                    failures.append((request, ValueError(LEADS_NOWHERE)))
            else:
                new = request.token_ids[len(request.token_ids) - committed.num_new.get(request, 1) :]
                constraint.proposed = committed.proposed.get(request, [])
                moves.append(_Move(constraint, new, constraint.proposed))
        if moves:
            self._finish()
            self._begin(moves)
        return failures

    def forced(self, request: Request, most: int) -> list[int]:
        """Tokens that must come next, if all tokens so far are accepted; what comes may be cut into other tokens."""
        if (constraint := self._active.get(request)) is None:
            return []
        self._finish()
        return [] if constraint.matcher.error is not None else constraint.forced[:most]

    def sample(self, step: ScheduledStep, handle: MaskedHandle) -> Failures:
        """The second phase of a step that is computed, once all tokens before are accepted. Rows of requests that ended meanwhile,
        or fail now, may take all."""
        self._finish()
        rows, masked, num_logits = step.rows, step.step_input.masked, step.step_input.num_logits
        constraints = [self._active.get(rows[row]) for row in masked]
        has_drafts = max(num_logits) > 1
        if has_drafts or constraints != self._filled[0]:
            self._fill_missing(step, constraints)
        failures = [(rows[row], c.matcher.error) for row, c in zip(masked, constraints) if c is not None and c.matcher.error]
        together, masks = self._filled
        if has_drafts or failures or constraints != together:
            free = np.full((max(num_logits), self._num_words), -1, dtype=np.int32)
            own = [free if c is None or c.matcher.error is not None else cast(np.ndarray, c.masks) for c in constraints]
            masks = np.concatenate([each[: num_logits[row]] for row, each in zip(masked, own)])
        ends = list(accumulate(num_logits[row] for row in masked))
        if any((masks[:, word] & self._held[word]).any() for word in self._held_words):
            masks = masks.copy()
            for row, constraint, end in zip(masked, constraints, ends):
                if constraint is not None and constraint.matcher.error is None:
                    constraint.hold(masks[end - num_logits[row] : end], rows[row].num_output_tokens)
        if not np.bitwise_or.reduce(masks, axis=1).all():
            masks = masks.copy()
            for row, end in zip(masked, ends):
                part = masks[end - num_logits[row] : end]
                if not part[0].any():  # behind a draft it matters only if the draft is right: see accept
                    part[:] = -1
                    failures.append((rows[row], ValueError(LEADS_NOWHERE)))
        handle.sample(masks)
        return failures

    def _fill_missing(self, step: ScheduledStep, constraints: list[_Constraint | None]) -> None:
        """Masks of masked rows that have none for their drafts, or none yet."""
        moves: list[_Move] = []
        for row, constraint in zip(step.step_input.masked, constraints):
            if constraint is None:
                continue
            drafts = step.drafts(row)
            if drafts and drafts[0] < 0:  # made by the executor, which told of them
                drafts = constraint.proposed[: len(drafts)]
            if constraint.masks is None or constraint.drafts[: len(drafts)] != drafts:
                moves.append(_Move(constraint, [], drafts))
        if moves:
            self._begin(moves)
            self._finish()

    def _begin(self, moves: list[_Move]) -> None:
        calls: dict[object, list[_Move]] = {}
        expected_s = 0.0
        for move in moves:
            constraint, backend = move.constraint, move.constraint.matcher.backend
            calls.setdefault(constraint if constraint.is_alone or not backend.is_bounded else backend, []).append(move)
            expected_s += constraint.fill_s if backend.is_bounded else math.inf
        self._filling, is_short = list(calls.values()), expected_s < SHORT_FILL_S
        self._thread.begin([partial(self._fill, call, is_short) for call in self._filling], is_short)

    def _finish(self) -> None:
        if not self._filling:
            return
        calls, self._filling = self._filling, []
        for index, error in self._thread.finish().items():
            for move in calls[index]:
                move.constraint.fail(error)
        constraints = [move.constraint for call in calls for move in call]
        total_s = sum(constraint.fill_s for constraint in constraints)
        is_dear = total_s > MAX_FILL_S / 2
        for constraint in constraints:
            constraint.is_alone = is_dear
        alone = sorted((call[0].constraint for call in calls if len(call) == 1), key=lambda constraint: constraint.fill_s)
        while total_s > MAX_FILL_S and alone and alone[-1].fill_s > MAX_FILL_S / 20:  # many that are cheap are nobody's fault
            total_s -= alone[-1].fill_s
            alone.pop().fail(TimeoutError())

    def _fill(self, moves: list[_Move], is_short: bool) -> None:
        """Runs in the thread, or in the caller's if it is short."""
        for constraint, _, _ in moves:
            constraint.fill_s = 0.0
            if constraint.grammar in self._computing:  # in a thread that was left behind
                constraint.fail(TimeoutError())
        moves = [move for move in moves if move.constraint.matcher.error is None]
        if not moves:
            return
        clock = thread_time if len(moves) == 1 else perf_counter  # of several, the library's own threads compute
        began_s, grammars = clock(), {move.constraint.grammar for move in moves}
        self._computing |= grammars
        try:
            matchers, drafts = [move.constraint.matcher for move in moves], [move.drafts for move in moves]
            backend, forced = matchers[0].backend, [list[int]() for _ in moves]
            backend.accept(matchers, [move.token_ids for move in moves])
            if self._num_forced:
                forced = [tokens[: self._num_forced] for tokens in backend.forced(matchers)]
                drafts = [own or expected for own, expected in zip(drafts, forced)]
            ends = list(accumulate(1 + len(own) for own in drafts))
            masks = np.full((ends[-1], self.compiler.vocabulary.num_words), -1, dtype=np.int32)
            backend.fill(matchers, drafts, masks, is_short)
        finally:
            self._computing -= grammars
        masks, share_s = masks[:, : self._num_words], (clock() - began_s) / len(moves)
        for (constraint, _, _), own, expected, end in zip(moves, drafts, forced, ends):
            constraint.masks, constraint.drafts, constraint.forced = masks[end - 1 - len(own) : end], own, expected
            constraint.fill_s = share_s
        self._filled = [move.constraint for move in moves] if len(masks) == len(moves) else [], masks

    def _is_ready(self, request: Request) -> bool:
        if request in self._active:
            return True  # it was preempted, or has waited for something else, too
        job = self._jobs[request]
        if (grammar := self.compiler.result(job)) is None:
            return False
        constraint = self._active[request] = _Constraint(grammar, request)
        if constraint.most_held:
            set_bits(self._held, constraint.held, True)
            self._held_words = np.flatnonzero(self._held).tolist()
        self.num_served[job.backend] += 1
        self.compiler.release(self._jobs.pop(request))
        return True


class _Constraint:
    """A matcher, the mask of what it allows next, and which stop tokens the request does not want yet: they come all the same where
    nothing else may.

    masks     of the next token, and of those behind each of ``drafts``; None before its first
    held, most_held  stop tokens, and before how many tokens the request does not want them
    proposed  what the executor has made of drafts since
    forced    the first tokens that must come next, as far as they were asked for
    fill_s    its share of what the last call took: CPU time of its own, or time of a call for several
    is_alone  its next call is not for several
    """

    __slots__ = ("drafts", "fill_s", "forced", "grammar", "held", "is_alone", "masks", "matcher", "most_held", "proposed")

    def __init__(self, grammar: Grammar, request: Request) -> None:
        params = request.params
        self.grammar = grammar
        self.matcher: Matcher = grammar.matcher(params.all_stop_token_ids)
        self.masks: np.ndarray | None = None
        self.drafts, self.proposed, self.forced = list[int](), list[int](), list[int]()
        self.fill_s, self.is_alone = math.inf, False
        self.held, self.most_held = set(params.all_stop_token_ids), params.min_tokens
        if params.ignore_eos:
            ends = set(params.stop_token_ids or ())
            if self.held - ends:
                self.held, self.most_held = self.held - ends, request.max_total

    def fail(self, error: BaseException) -> None:
        """Its request is to end, and told of it."""
        if isinstance(error, TimeoutError):
            error = ValueError(f"structured_outputs: a token of this grammar takes more than {MAX_FILL_S:g} s: make it simpler")
        elif not isinstance(error, Exception):
            error = RuntimeError(f"structured_outputs: {type(error).__name__}: {error}")
        self.matcher.error = self.matcher.error or error

    def leads_nowhere(self, num_new: int, request: Request) -> bool:
        """Whether nothing may follow the tokens that its request got of the last step."""
        assert self.masks is not None
        masks = self.masks.copy()
        self.hold(masks, request.num_output_tokens - num_new)
        return num_new < len(masks) and not masks[num_new].any()

    def hold(self, masks: np.ndarray, num_output_tokens: int) -> None:
        """Takes out of masks [any, words] of the next token, after so many, and of those behind drafts, the stop tokens that the
        request does not want yet."""
        for mask in masks[: max(0, self.most_held - num_output_tokens)]:
            others = mask.copy()
            set_bits(others, self.held, False)
            if others.any():
                mask[:] = others


class _Move(NamedTuple):
    """The tokens that a constraint is to take before its next mask, and the drafts behind each of which it is to have one, too."""

    constraint: _Constraint
    token_ids: list[int]
    drafts: list[int]
