"""How the scheduler speculates, and what it learns from it."""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import index
from typing import Any

from ..speculation.depth import Checked, Depth
from ..speculation.forced import Forced
from ..speculation.proposer import HostProposer
from .request import Request
from .scheduled import ScheduledStep
from .step import StepOutput

_logger = logging.getLogger(__name__)


class Speculation:
    """Of one engine.

    depth          says how many drafts of a request a step checks
    proposer       None where the executor makes them, on its device, after the step before
    max_model_len  longest sequence that it can follow; None = as long as any
    forced         (request, most) -> drafts that come before those of the proposer: what a grammar forces
    """

    def __init__(
        self,
        depth: Depth,
        vocab_size: int,
        proposer: HostProposer | None = None,
        max_model_len: int | None = None,
        forced: Callable[[Request, int], list[int]] | None = None,
    ) -> None:
        self.depth, self.proposer, self.max_model_len, self._forced = depth, proposer, max_model_len, forced
        self._vocab_size, self._has_failed = vocab_size, False
        self._last_end_s = 0.0

    def drafts(self, request: Request, most: int) -> tuple[Sequence[int], int] | None:
        """(drafts of a request that decodes, how many there was room for: ``most`` at most), with -1 for what only the executor
        knows, which makes it behind the request's tokens, in blocks that the request has already. None: what its step is to be
        depends on tokens in flight."""
        left = request.max_total - request.num_tokens - 1
        if left < 0:  # its last token may be one of them
            return None
        if self.proposer is None:
            most = min(most, request.num_proposed)
        if self.max_model_len is not None:
            most = min(most, self.max_model_len - request.num_tokens)
        room = max(min(most, left), 0)
        if self.proposer is None:
            return [-1] * room, room
        if not room or (isinstance(self.proposer, Forced) and request.params.structured_outputs is None):
            return (), room
        if request.num_tokens > len(request.token_ids):
            return None
        return self.propose(request, room), room

    def start(self, request: Request) -> None:
        """A request is there."""
        if self.proposer is not None:
            self._ask(self.proposer.start, request.request_id, request.token_ids, request.extra_keys)

    def propose(self, request: Request, most: int) -> list[int]:
        """Drafts of a request, all of whose tokens are known: those that are forced, else what the proposer says."""
        return self._ask(self._propose, request, most) or []

    def stop(self, request: Request) -> None:
        """A request ended."""
        if self.proposer is not None:
            self._ask(self.proposer.stop, request.request_id, request.token_ids)

    def _propose(self, request: Request, most: int) -> list[int]:
        assert self.proposer is not None
        forced = self._forced(request, most) if self._forced is not None else []
        drafts = forced or [index(token) for token in self.proposer.propose(request.request_id, request.token_ids, most)]
        if len(drafts) > most or not all(0 <= token < self._vocab_size for token in drafts):
            asked = f"{most} tokens from 0 to {self._vocab_size - 1} were asked for"
            raise ValueError(f"it proposed {reprlib.repr(drafts)}, where {asked}")
        return drafts

    def _ask(self, question: Callable[..., Any], *of: Any) -> Any:
        """A proposer that fails, or says what is no token, has nothing to say: what comes out does not depend on it. The first time
        is logged."""
        try:
            return question(*of)
        except Exception:
            if not self._has_failed:
                _logger.exception("%s proposes nothing for a request", type(self.proposer).__name__)
            self._has_failed = True
            return None

    def observe(self, scheduled: ScheduledStep, output: StepOutput, end_s: float) -> tuple[list[int], list[int]]:
        """Takes in a step that came back at ``end_s``. Returns, of its rows that sampled, how many
        drafts they had, and how many were right."""
        step = scheduled.step_input
        num_drafts = [wanted - 1 for wanted in step.num_logits if wanted]
        accepted = output.num_accepted or [0] * len(num_drafts)
        sampling = scheduled.sampling
        was_busy = any(request.arrival_s < self._last_end_s for request in sampling)  # since the step before
        step_s, self._last_end_s = end_s - (self._last_end_s if was_busy else scheduled.submitted_s), end_s
        is_known = 0 < step_s < math.inf and step.num_logits == step.num_tokens  # clocks may stand still
        rooms = [0] * len(scheduled.decodes) + [chunk.room for chunk in scheduled.chunks if chunk.num_logits]
        most = max(rooms, default=0)
        ended, all_right = [0] * (1 + most), [0] * (1 + most)  # rows by right drafts, and those of them that had no room for more
        again = again_right = 0
        for request, room, count in zip(sampling, rooms, accepted, strict=True):
            if room:
                ended[count] += 1
                all_right[count] += count == room
                if request.was_right:
                    again += 1
                    again_right += count > 0
                request.was_right = count == room
        right = list(accumulate(ended[:0:-1]))[::-1]
        checked = [before - full for before, full in zip([sum(ended), *right], all_right[:most])]
        known_s = step_s if is_known else None
        self.depth.observe(Checked(len(rooms), scheduled.num_drafts, checked, right, (again, again_right), known_s))
        return num_drafts, accepted
