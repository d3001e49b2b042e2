"""The matchers of an engine's requests, from the compilation of their grammars to their last token."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import numpy as np

from ..bitmask import num_words, set_bits
from ..engine.request import Request, Status
from ..engine.scheduled import Committed, ScheduledStep
from .backends.protocol import Matcher
from .compiler import GrammarCompiler, Job
from .watched import MAX_STUCK, WatchedThread

MAX_FILL_S: Final = 0.2
"""CPU time of one mask, after which its request ends: all others wait meanwhile."""

Failures = list[tuple[Request, Exception]]


class Matchers:
    """Knows requests only; where they compute, and whether they were preempted, is nothing to it. Requests without a constraint do
    not come here.

    num_active  requests that have a matcher: while it is 0, steps need not ask
    """

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self.compiler = compiler
        self._num_words = num_words(vocab_size)
        self._jobs: dict[Request, Job] = {}
        self._active: dict[Request, _Constraint] = {}
        self._thread = WatchedThread(MAX_FILL_S)

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

    def masked_rows(self, step: ScheduledStep) -> list[int]:
        """Rows of a step that sample, and whose request has a matcher, ascending."""
        active, first_chunk = self._active, len(step.decodes)
        rows = [row for row, request in enumerate(step.decodes) if request in active]
        return rows + [row for row, c in enumerate(step.chunks, first_chunk) if c.num_logits and c.request in active]

    def masks(self, step: ScheduledStep) -> tuple[np.ndarray, Failures]:
        """What the masked rows of a step may take, as MaskedHandle has it, once all tokens before are accepted. Rows of requests
        that ended meanwhile, or fail now, may take all."""
        rows, masked = step.rows, step.step_input.masked
        masks = np.full((len(masked), self._num_words), -1, dtype=np.int32)
        filled = [(index, rows[row]) for index, row in enumerate(masked) if rows[row] in self._active]
        found = self._thread.run([partial(self._active[r].fill, masks[index], r.num_output_tokens) for index, r in filled])
        if found:
            masks = masks.copy()  # what was left behind writes to the other one
        failures: Failures = []
        for call, error in found.items():
            index, request = filled[call]
            masks[index] = -1
            failures.append((request, _cause(error)))
        for index in np.flatnonzero(~masks.any(1)).tolist():
            masks[index] = -1
            failures.append(
                (rows[masked[index]], ValueError("structured_outputs: the grammar leads nowhere: no token fits what was generated"))
            )
        return masks, failures

    def accept(self, committed: Committed) -> None:
        """Takes the tokens of a step, and forgets the requests that ended with it."""
        for request in committed.requests:
            if request.status == Status.FINISHED:
                self._active.pop(request, None)
            elif (constraint := self._active.get(request)) is not None:
                constraint.new += request.token_ids[len(request.token_ids) - committed.num_new.get(request, 1) :]

    def _is_ready(self, request: Request) -> bool:
        if (grammar := self.compiler.result(self._jobs[request])) is None:
            return False
        self._active[request] = _Constraint(grammar.matcher(request.params.all_stop_token_ids), request, self._num_words)
        self.compiler.release(self._jobs.pop(request))
        request.is_ready = None  # and stays so when it is preempted
        return True


class _Constraint:
    """A matcher, and which stop tokens the request does not want yet: they come all the same where nothing else may.

    new  tokens that the matcher has not taken yet
    """

    __slots__ = ("_most_held", "_wanted", "matcher", "new")

    def __init__(self, matcher: Matcher, request: Request, num_words: int) -> None:
        self.matcher, params = matcher, request.params
        self.new: list[int] = []
        unwanted = set(params.all_stop_token_ids)
        self._most_held = params.min_tokens
        if params.ignore_eos:
            ends = set(params.stop_token_ids or ())
            if unwanted - ends:
                unwanted, self._most_held = unwanted - ends, request.max_total
        self._wanted: np.ndarray | None = None
        if self._most_held:
            self._wanted = np.full(num_words, -1, dtype=np.int32)
            set_bits(self._wanted, unwanted, False)

    def fill(self, mask: np.ndarray, num_output_tokens: int) -> None:
        for token in self.new:
            self.matcher.accept(token)
        self.new.clear()
        self.matcher.fill(mask)
        if self._wanted is not None and num_output_tokens < self._most_held and (mask & self._wanted).any():
            mask &= self._wanted


def _cause(error: BaseException) -> Exception:
    """What a request is told that ended with it."""
    if isinstance(error, TimeoutError):
        return ValueError(f"structured_outputs: a token of this grammar takes more than {MAX_FILL_S:g} s: make it simpler")
    return error if isinstance(error, Exception) else RuntimeError(f"structured_outputs: {type(error).__name__}: {error}")
