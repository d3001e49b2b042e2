"""The matchers of an engine's requests, from the compilation of their grammars to their last token."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from ..bitmask import num_words, set_bits
from ..engine.executor import MaskedHandle
from ..engine.request import Request, Status
from ..engine.scheduled import Committed, ScheduledStep
from .backends.protocol import Backend, Matcher
from .compiler import GrammarCompiler, Job

Failures = list[tuple[Request, Exception]]


class Matchers:
    """Knows requests only; where they compute, and whether they were preempted, is nothing to it. Requests without a constraint do
    not come here. What a request may take next is computed as soon as its tokens are known, in a thread beside the caller.

    num_active  requests that have a matcher: while it is 0, steps need not ask
    num_served  name of a backend -> requests that it had a grammar for
    """

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self.compiler = compiler
        self.num_served: Counter[str] = Counter()
        self._num_words = num_words(vocab_size)
        self._jobs: dict[Request, Job] = {}
        self._active: dict[Request, _Constraint] = {}
        self._thread = ThreadPoolExecutor(1, "kernelswap-masks")
        self._filling: Future[None] | None = None

    @property
    def num_active(self) -> int:
        return len(self._active)

    def add(self, request: Request) -> None:
        """Begins to compile the request's grammar; it is ready when that is done. Asking it raises ValueError if it cannot be."""
        assert request.params.structured_outputs is not None
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
        rows += [row for row, c in enumerate(step.chunks, first_chunk) if c.samples and c.request in active]
        step.step_input.masked = rows

    def accept(self, committed: Committed) -> None:
        """Takes the tokens of a step, and begins with the masks after them; forgets the requests that ended with it."""
        new: dict[_Constraint, list[int]] = {}
        for request in committed.requests:
            if (constraint := self._active.get(request)) is None:
                continue
            if request.status == Status.FINISHED:
                del self._active[request]
            else:
                new[constraint] = request.token_ids[len(request.token_ids) - committed.num_new.get(request, 1) :]
        if not new:
            return
        self._wait()
        _per_backend(new, lambda backend, own: backend.accept([c.matcher for c in own], [new[c] for c in own]))
        has_started = threading.Event()
        self._filling = self._thread.submit(self._fill, list(new), has_started)
        has_started.wait()  # or it would have to until this thread lets others run, with its next kernel

    def sample(self, step: ScheduledStep, handle: MaskedHandle) -> Failures:
        """The second phase of a step that is computed, once all tokens before are accepted. Rows of requests that ended meanwhile,
        or fail now, may take all."""
        self._wait()
        rows, masked = step.rows, step.step_input.masked
        requests = [rows[row] for row in masked]
        if fresh := [c for request in requests if (c := self._active.get(request)) is not None and c.mask is None]:
            self._fill(fresh)
        masks = np.full((len(masked), self._num_words), -1, dtype=np.int32)
        failures: Failures = []
        for index, request in enumerate(requests):
            if (constraint := self._active.get(request)) is None:
                continue
            if constraint.matcher.error is None:
                masks[index] = constraint.wanted(request.num_output_tokens)
            else:
                failures.append((request, constraint.matcher.error))
        for index in np.flatnonzero(~masks.any(1)).tolist():
            masks[index] = -1
            reason = "structured_outputs: the grammar leads nowhere: no token fits what was generated"
            failures.append((requests[index], ValueError(reason)))
        handle.sample(masks)
        return failures

    def _wait(self) -> None:
        if self._filling is not None:
            filling, self._filling = self._filling, None
            filling.result()

    def _fill(self, constraints: list[_Constraint], has_started: threading.Event | None = None) -> None:
        if has_started is not None:
            has_started.set()

        def fill(backend: Backend, own: list[_Constraint]) -> None:
            masks = np.full((len(own), self.compiler.vocabulary.num_words), -1, dtype=np.int32)
            backend.fill([constraint.matcher for constraint in own], [()] * len(own), masks)
            for constraint, mask in zip(own, masks):
                constraint.mask = mask[: self._num_words]

        _per_backend(constraints, fill)

    def _is_ready(self, request: Request) -> bool:
        job = self._jobs[request]
        if (grammar := self.compiler.result(job)) is None:
            return False
        self._active[request] = _Constraint(grammar.matcher(request.params.all_stop_token_ids), request)
        self.num_served[job.backend] += 1
        self.compiler.release(self._jobs.pop(request))
        request.is_ready = None  # and stays so when it is preempted
        return True


class _Constraint:
    """A matcher, the mask of what it allows next, and which stop tokens the request does not want yet: they come all the same where
    nothing else may."""

    __slots__ = ("_held", "_most_held", "mask", "matcher")

    def __init__(self, matcher: Matcher, request: Request) -> None:
        self.matcher, params = matcher, request.params
        self.mask: np.ndarray | None = None
        self._held, self._most_held = set(params.all_stop_token_ids), params.min_tokens
        if params.ignore_eos:
            ends = set(params.stop_token_ids or ())
            if self._held - ends:
                self._held, self._most_held = self._held - ends, request.max_total

    def wanted(self, num_output_tokens: int) -> np.ndarray:
        """The mask without the stop tokens that the request does not want after so many tokens."""
        mask = self.mask
        assert mask is not None
        if num_output_tokens < self._most_held:
            for token in self._held:
                if mask.item(token // 32) >> token % 32 & 1:
                    others = mask.copy()
                    set_bits(others, self._held, False)
                    return others if others.any() else mask
        return mask


def _per_backend(constraints: Iterable[_Constraint], move: Callable[[Any, list[_Constraint]], None]) -> None:
    """Calls ``move`` with each backend and those of its constraints, which fail if it does."""
    groups: dict[Backend, list[_Constraint]] = {}
    for constraint in constraints:
        groups.setdefault(constraint.matcher.backend, []).append(constraint)
    for backend, own in groups.items():
        try:
            move(backend, own)
        except Exception as error:
            for constraint in own:
                constraint.matcher.error = constraint.matcher.error or error
