"""How the scheduler speculates, and what it learns from it."""

from __future__ import annotations

import logging
import reprlib

from ..speculation.depth import Depth
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
    """

    def __init__(
        self, depth: Depth, vocab_size: int, proposer: HostProposer | None = None, max_model_len: int | None = None
    ) -> None:
        self.depth, self.proposer, self.max_model_len = depth, proposer, max_model_len
        self._vocab_size, self._has_failed = vocab_size, False
        self._last_end_s = 0.0

    def propose(self, request: Request, most: int) -> list[int]:
        """Drafts of a request, all of whose tokens are known. A proposer that fails, or says what is no token, has nothing to say:
        what comes out does not depend on it. The first time is logged."""
        assert self.proposer is not None
        try:
            drafts = self.proposer.propose(request.request_id, request.token_ids, most)
            if len(drafts) > most or not all(0 <= token < self._vocab_size for token in drafts):
                asked = f"{most} tokens from 0 to {self._vocab_size - 1} were asked for"
                raise ValueError(f"it proposed {reprlib.repr(drafts)}, where {asked}")
        except Exception:
            if not self._has_failed:
                _logger.exception("%s proposes nothing for a request", type(self.proposer).__name__)
            self._has_failed = True
            return []
        return drafts

    def observe(self, scheduled: ScheduledStep, output: StepOutput, end_s: float) -> tuple[list[int], list[int]]:
        """Takes in a step that came back at ``end_s``. Returns, of its rows that sampled, how many
        drafts they had, and how many were right."""
        num_logits = scheduled.step_input.num_logits
        num_drafts = [wanted - 1 for wanted in num_logits if wanted]
        accepted = output.num_accepted or [0] * len(num_drafts)
        step_s, self._last_end_s = end_s - max(scheduled.submitted_s, self._last_end_s), end_s
        if all(wanted == count for wanted, count in zip(num_logits, scheduled.step_input.num_tokens)):
            most = max(num_drafts)
            by_position = [sum(count > nth for count in accepted) for nth in range(most)]
            self.depth.observe(len(num_logits), scheduled.num_drafts, by_position, step_s)
        return num_drafts, accepted
