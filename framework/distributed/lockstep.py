"""One executor for several schedulers, whose ranks share the experts and so take every step together."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engine.step import StepInput, StepOutput
from .executor import DistributedExecutor
from .messages import Masks, Steps


class LockstepExecutor:
    """Takes steps of every scheduler through its member, and sends one of each as one message: whoever has none takes part with no
    tokens. So no rank can miss a collective.

    members  what each scheduler submits to
    """

    def __init__(self, executor: DistributedExecutor) -> None:
        self.executor, self._num_sent = executor, 0
        self._queues: list[deque[MemberHandle]] = [deque() for _ in range(executor.num_schedulers)]
        self._unsampled: dict[int, MemberHandle] = {}  # by scheduler
        self.members = [Member(self, index) for index in range(executor.num_schedulers)]

    def queue(self, handle: MemberHandle) -> None:
        self._queues[handle.scheduler].append(handle)

    def flush(self) -> None:
        """Sends what is queued; but nothing before all that was sent is sampled, which ranks do between two steps."""
        while any(self._queues) and not self._unsampled:
            handles = [queue.popleft() if queue else None for queue in self._queues]
            inputs = [StepInput(0, [], [], []) if handle is None else handle.step for handle in handles]
            most = max(sum(step.num_tokens) for step in inputs)
            sent = SentSteps(self._num_sent)
            self._num_sent += 1
            for handle in filter(None, handles):
                handle.sent = sent
                if handle.step.masked:
                    self._unsampled[handle.scheduler] = handle
            try:
                self.executor.send_step(Steps(sent.step_id, [replace(step, most_tokens=most) for step in inputs]))
            except Exception as error:
                sent.error = error

    def sample(self, handle: MemberHandle, masks: np.ndarray) -> None:
        self.flush()
        assert self._unsampled.get(handle.scheduler) is handle and handle.sent is not None
        del self._unsampled[handle.scheduler]
        self.executor.send(Masks(handle.sent.step_id, masks, handle.scheduler))

    def give_up(self) -> None:
        """Lets rows take any token whose scheduler no longer asks for them, so that the others go on."""
        words = -(-self.executor.vocab_size // 32)
        for handle in list(self._unsampled.values()):
            self.sample(handle, np.full((len(handle.step.masked), words), -1, dtype=np.int32))


@dataclass
class SentSteps:
    """Steps that were sent together. error: why they could not be."""

    step_id: int
    error: Exception | None = None


class MemberHandle:
    """A step of one scheduler. sent: with those of the others, once it was."""

    def __init__(self, lockstep: LockstepExecutor, scheduler: int, step: StepInput) -> None:
        self.scheduler, self.step = scheduler, step
        self.sent: SentSteps | None = None
        self._lockstep = lockstep

    def sample(self, masks: np.ndarray) -> None:
        """As MaskedHandle has it."""
        self._lockstep.sample(self, masks)

    def result(self) -> StepOutput:
        """As ``distributed.executor.StepHandle``."""
        self._lockstep.flush()
        if self.sent is None:
            self._lockstep.give_up()
            self._lockstep.flush()
        assert self.sent is not None
        if self.sent.error is not None:
            raise self.sent.error
        output = self._lockstep.executor.output(self.sent.step_id, self.scheduler)
        return replace(output, step_id=self.step.step_id)


class Member:
    """The executor of one scheduler: as the one behind it, which has all other attributes."""

    def __init__(self, lockstep: LockstepExecutor, scheduler: int) -> None:
        self._lockstep, self._scheduler = lockstep, scheduler

    def submit(self, step: StepInput) -> MemberHandle:
        """Keeps it until ``LockstepExecutor.flush``."""
        handle = MemberHandle(self._lockstep, self._scheduler, step)
        self._lockstep.queue(handle)
        return handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lockstep.executor, name)
