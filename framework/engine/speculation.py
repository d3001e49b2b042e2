"""How the scheduler speculates, and what it learns from it."""

from __future__ import annotations

from ..speculation.depth import Depth
from ..speculation.proposer import HostProposer
from .scheduled import ScheduledStep
from .step import StepOutput


class Speculation:
    """Of one engine.

    depth          says how many drafts of a request a step checks
    proposer       None where the executor makes them, on its device, after the step before
    max_model_len  longest sequence that it can follow; None = as long as any
    """

    def __init__(self, depth: Depth, proposer: HostProposer | None = None, max_model_len: int | None = None) -> None:
        self.depth, self.proposer, self.max_model_len = depth, proposer, max_model_len
        self._last_end_s = 0.0

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
