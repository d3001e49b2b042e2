"""The driver's side: one executor whose steps run on several workers. No tensors."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ..clock import Clock
from ..config import EngineConfig
from ..engine.errors import DeviceLostError
from ..engine.step import StepInput, StepOutput
from ..failures import Failure
from ..lora_request import LoRARequest
from ..models.expert_map import ExpertMap, first_map
from ..models.ranks import check_ranks
from ..models.read import ModelInfo
from ..op_times import OpTimes
from .experts import MovingExperts, total_loads
from .handshake import refuse_differences, refuse_versions, versions
from .kinds import LAUNCHERS
from .messages import (
    Answer,
    AskLoads,
    AskPlan,
    Built,
    DropAdapter,
    Factory,
    Hello,
    LoadAdapter,
    Masks,
    MoveExperts,
    Place,
    Start,
    Steps,
)
from .questions import Question, RanksLoad
from .workers import PONG_S, Silence, Workers

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

    from .launchers.protocol import Launcher
    from .rendezvous import Rendezvous

FAILURE_S = 2.0
"""How long ranks have for failing at the same step. One may also fail because another is gone, which is found meanwhile."""


class StepHandle:
    """A step that was sent to all ranks."""

    __slots__ = ("_executor", "_step_id")

    def __init__(self, executor: DistributedExecutor, step_id: int) -> None:
        self._executor, self._step_id = executor, step_id

    def sample(self, masks: np.ndarray) -> None:
        """As MaskedHandle has it."""
        self._executor.send(Masks(self._step_id, masks))

    def result(self) -> StepOutput:
        """Raises RuntimeError for what went wrong on a rank, and as ``DistributedExecutor.submit``."""
        return self._executor.output(self._step_id)


class DistributedExecutor:
    """Workers as many as ``parallel.num_ranks``, each with an executor that ``factory`` makes, see messages.py.

    A step is pickled once, and the same bytes go to every worker; only output ranks answer, others when something went wrong.
    Several schedulers share it through ``LockstepExecutor``.
    The end of a worker is seen at once, and its silence after ``parallel.step_timeout_s``: then the others are ended, too. So they
    are after a failure that not all ranks have in common: the others wait for the rank in the middle of the step, and would take
    what it sends in the next one for that of this one.
    """

    call_times: OpTimes | None = None

    @classmethod
    def open(cls, config: EngineConfig, model: ModelInfo, clock: Clock) -> DistributedExecutor:
        """Of local executors. Raises ValueError where there can be none, before weights are read."""
        from ..worker.rank import ThreadRanks, check_devices, open_rank
        from .rendezvous import Rendezvous

        parallel = config.parallel
        check_ranks(model, parallel, config.quant)
        experts = None if model.architecture is None else first_map(model.architecture, parallel)
        if parallel.backend == "threads":
            ranks = ThreadRanks(parallel.tp, parallel.pp, parallel.num_schedulers)
            return cls(config, ranks, experts=experts)
        check_devices(config)
        return cls(config, open_rank, Rendezvous, experts)

    @staticmethod
    def runs_on(config: EngineConfig) -> tuple[str, str]:
        from ..worker.devices import open_device

        device, size = open_device(config.device), config.parallel.num_ranks
        return f"{size} x {device.name}" if size > 1 else device.name, device.arch

    def __init__(
        self, config: EngineConfig, factory: Factory, rendezvous: type[Rendezvous] | None = None, experts: ExpertMap | None = None
    ) -> None:
        """rendezvous: of ranks that need one. experts: where they lie at first, if they can lie elsewhere. Raises ValueError for
        ranks that differ in what must be equal, DeviceLostError if one ends, and whatever goes wrong in making their executors."""
        parallel = config.parallel
        self.num_stages, self._timeout_s = parallel.pp, parallel.step_timeout_s
        self.num_schedulers = parallel.num_schedulers
        config = _of_rank(config)
        self._process_id = os.getpid()
        self._rendezvous: Rendezvous | None = None
        self._lost: str | None = None
        self._outputs: dict[tuple[int, int], StepOutput] = {}  # by scheduler and step
        self._taken = [-1] * self.num_schedulers  # the latest step that each asked for
        self._failures: dict[int, dict[int, Failure]] = {}  # by step and rank
        self._questions: dict[str, Question] = {}  # that are not answered by all
        self._num_asked = 0
        self._experts = None if experts is None else MovingExperts(experts, parallel.eplb_steps)
        launcher: Launcher = LAUNCHERS[parallel.backend].load()()
        self._workers = Workers(launcher, parallel.step_timeout_s)
        weakref.finalize(self, self._workers.kill)
        try:
            address = ""
            if rendezvous is not None:
                self._rendezvous = rendezvous(parallel.port, launcher.host)
                address = self._rendezvous.address
            size = parallel.num_ranks
            self._places = [Place(rank, size, parallel.tp, address, self.num_schedulers) for rank in range(size)]
            self._workers.start([Start(place, config, factory) for place in self._places])
            built = self._shake_hands(parallel.start_timeout_s)
            refuse_differences(config, built)
        except BaseException:
            self._kill()
            raise
        facts = [found.facts for found in built]
        self.groups, self.vocab_size, self.max_model_len = (facts[0][name] for name in ("groups", "vocab_size", "max_model_len"))
        self.num_drafts, self.draft_max_model_len = facts[0]["num_drafts"], facts[0]["draft_max_model_len"]
        self.drafts_read_ahead, self.has_states = facts[0]["drafts_read_ahead"], facts[0]["has_states"]
        self.in_flight_steps = max(facts[0]["in_flight_steps"], self.num_stages)
        self.num_blocks = min(found["num_blocks"] for found in facts)
        self.weight_bytes = sum(found["weight_bytes"] for found in facts)
        self.nominal_weight_bytes = sum(found["nominal_weight_bytes"] for found in facts)

    def submit(self, step: StepInput) -> StepHandle:
        """Returns at once. Raises DeviceLostError if a rank is gone, or silent for too long, and where there never was any: in a
        process forked from the engine's."""
        self.send_step(step)
        return StepHandle(self, step.step_id)

    def send_step(self, step: StepInput | Steps) -> None:
        """To all ranks, whose experts move before if it is time to."""
        if self._experts is not None and self._experts.is_due():
            self.rebalance_experts()
        self.send(step)

    def send(self, message: Any) -> None:
        """To all ranks."""
        self._refuse_lost()
        pickled = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._tell(lambda: self._workers.send(pickled))
        self._ping_if_due()

    def wait_idle(self, pipe: Connection) -> None:
        """As HasRanks has it."""
        self._refuse_lost()
        while pipe not in self._receive(self._workers.ping_s, pipe):
            self._ping_if_due()

    def output(self, step_id: int, scheduler: int = 0) -> StepOutput:
        """Of a scheduler's part of a step, in the order of its submissions; see StepHandle."""
        self._refuse_lost()
        deadline_s, key = time.monotonic() + self._timeout_s, (scheduler, step_id)
        while key not in self._outputs and step_id not in self._failures:
            self._receive_until(deadline_s, f"step {step_id} was not done")
        for failed in sorted(failed for failed in self._failures if failed <= step_id):  # with those that the engine gave up
            self._require_all_failed(failed)
        output, failures = self._outputs.get(key), self._failures.get(step_id)
        self._taken[scheduler] = step_id
        for old in [old for old in self._outputs if old[0] == scheduler and old[1] <= step_id]:
            del self._outputs[old]
        for failed in [failed for failed in self._failures if failed <= min(self._taken)]:
            del self._failures[failed]
        if failures is not None:
            rank, failure = next(iter(failures.items()))
            raise RuntimeError(f"rank {rank}: {failure.text}") from failure.error()
        assert output is not None
        return output

    def load_adapter(self, request: LoRARequest) -> RanksLoad:
        """All ranks read it. Raises as ``submit``."""
        question = self._ask(lambda key: LoadAdapter(key, request))
        return RanksLoad(request.lora_path, question, self.send)

    def drop_adapter(self, key: str) -> None:
        self.send(DropAdapter(key, list(range(len(self._workers)))))

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """As the ranks have it; calls are those of the first rank that runs an op."""
        plans = self._answers(AskPlan, "the kernel plan was not told")
        return {op: report for rank in sorted(plans, reverse=True) for op, report in plans[rank].items()}

    def expert_loads(self) -> dict[int, list[int]]:
        """As ``Engine.expert_loads``, by all steps so far, which it waits for."""
        return total_loads(self._places, self._answers(AskLoads, "the loads of experts were not told"))

    def rebalance_experts(self) -> tuple[float, float]:
        """As ``Engine.rebalance_experts``."""
        assert self._experts is not None, "the configuration asks for it"
        found = self._experts.balance(self.expert_loads())
        self.send(MoveExperts(self._experts.map))
        return found

    def shutdown(self) -> None:
        """Ends the workers, and waits until they are gone."""
        self._lost = self._lost or "the executor was shut down"
        self._workers.end()
        self._close_rendezvous()

    def _ask(self, message: Callable[[str], Any]) -> Question:
        """Of all ranks what the message, with this key, asks."""
        key, self._num_asked = f"question-{self._num_asked}", self._num_asked + 1
        question = self._questions[key] = Question(len(self._workers), self.receive)
        self.send(message(key))
        return question

    def _answers(self, message: Callable[[str], AskPlan | AskLoads], overdue: str) -> dict[int, Any]:
        """By rank, what each answers within the time of a step; overdue: what there is to say if one does not."""
        question, deadline_s = self._ask(message), time.monotonic() + self._timeout_s
        while not question.is_answered:
            self._receive_until(deadline_s, overdue)
        return question.found

    def _shake_hands(self, timeout_s: float) -> list[Built]:
        """What the ranks built, in their order. What one cannot do is raised at once, whatever the others still do."""
        own, deadline_s = versions(), time.monotonic() + timeout_s
        built: dict[int, Built] = {}
        greeted = False
        while len(built) < len(self._workers):
            if (remaining_s := deadline_s - time.monotonic()) <= 0:
                late = self._workers.named([rank for rank in range(len(self._workers)) if rank not in built])
                limit = f"within {timeout_s:g} s (parallel.start_timeout_s)"
                self._lose(f"ranks were not ready {limit}: {late}; {self._workers.who_hangs()}")
            try:
                messages = self._messages(self._workers.wait(remaining_s))
            except DeviceLostError as lost:
                if not greeted:  # workers import the script that started them
                    lost.add_note('A script builds its engine below `if __name__ == "__main__":`, or its workers would build one.')
                raise
            for rank, message in messages:
                if isinstance(message, Hello):
                    greeted = True
                    refuse_versions(own, rank, message.versions)
                elif isinstance(message, Failure):
                    error = message.error()
                    error.add_note(f"This was on rank {rank} of {len(self._workers)}.")
                    raise error
                else:
                    assert isinstance(message, Built), message
                    built[rank] = message
        return [built[rank] for rank in range(len(built))]

    def _receive_until(self, deadline_s: float, overdue: str) -> None:
        """Waits for anything; overdue: what there is to say if nothing came."""
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            limit = f"within {self._timeout_s:g} s (parallel.step_timeout_s)"
            self._lose(f"{overdue} {limit}: {self._workers.who_hangs()}")
        self._receive(remaining_s)

    def receive(self, timeout_s: float | None) -> None:
        """Takes in what has come, or what comes first; None: however long that takes. Raises DeviceLostError if a rank is gone."""
        self._refuse_lost()
        self._receive(timeout_s)

    def _tell(self, send: Callable[[], None]) -> None:
        try:
            with self._unbroken():
                send()
        except Silence as silence:
            self._lose(str(silence))
        except OSError:
            while True:  # until the end that broke the pipe is found
                self._receive(self._timeout_s)

    def _ping_if_due(self) -> None:
        """Once what was answered before has been taken in, and what lies before the answers."""
        if not self._workers.ping_is_due:
            return
        deadline_s = time.monotonic() + PONG_S
        while not self._workers.all_answered and (remaining_s := deadline_s - time.monotonic()) > 0:
            self._receive(remaining_s)
        self._tell(self._workers.ping)

    def _receive(self, timeout_s: float | None, *beside: Connection) -> Sequence[Any]:
        """Takes in what comes first, if anything does; returns what was ready."""
        ready = self._workers.wait(timeout_s, *beside)
        with self._unbroken():
            for rank, message in self._messages(ready):
                if isinstance(message, StepOutput):
                    self._outputs[self._places[rank].dp_rank, message.step_id] = message
                elif isinstance(message, Failure):
                    self._take_failure(rank, message)
                else:
                    assert isinstance(message, Answer), message
                    self._take_answer(rank, message.key, message.value)
        return ready

    def _messages(self, ready: Sequence[Any]) -> list[tuple[int, Any]]:
        """(rank, message) of those that are ready. Raises DeviceLostError if a worker has ended."""
        try:
            messages, ended = self._workers.receive(ready)
        except Silence as silence:
            self._lose(str(silence))
        if ended:
            self._lose(self._workers.endings(ended))
        return messages

    def _take_failure(self, rank: int, failure: Failure) -> None:
        if isinstance(failure.error(), DeviceLostError):
            self._lose(f"rank {rank}: {failure.text}")
        if isinstance(failure.key, str):
            self._take_answer(rank, failure.key, failure)
            return
        assert isinstance(failure.key, int)
        self._failures.setdefault(failure.key, {})[rank] = failure

    def _take_answer(self, rank: int, key: str, found: Any) -> None:
        question = self._questions[key]
        question.found[rank] = found
        if question.is_answered:
            del self._questions[key]

    def _require_all_failed(self, step_id: int) -> None:
        """In the same way: then they have come equally far."""
        failures, deadline_s = self._failures[step_id], time.monotonic() + FAILURE_S
        while len(failures) < len(self._workers) and (remaining_s := deadline_s - time.monotonic()) > 0:
            self._receive(remaining_s)
        if len(failures) < len(self._workers) or len({failure.text for failure in failures.values()}) > 1:
            told = "; ".join(f"rank {rank}: {failure.text}" for rank, failure in failures.items())
            self._lose(f"{told}; not all ranks failed like that, so they are no longer at the same point of their work")

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        """An interrupt inside (Ctrl-C) leaves ranks with different messages, or one half read: nobody could go on from there."""
        try:
            yield
        except Exception:
            raise
        except BaseException as interrupt:
            self._lost = f"{type(interrupt).__name__} came between the messages to the ranks, or from them"
            self._kill()
            raise

    def _refuse_lost(self) -> None:
        if self._process_id != os.getpid():
            raise DeviceLostError(
                f"the ranks belong to the process that built the engine ({self._process_id}), and this one was forked from it"
            )
        if self._lost is not None:
            raise DeviceLostError(self._lost)

    def _lose(self, reason: str) -> NoReturn:
        """Peers of a rank that is gone would wait for it, some forever."""
        self._lost = reason
        self._kill()
        raise DeviceLostError(reason)

    def _kill(self) -> None:
        self._workers.kill()
        self._close_rendezvous()

    def _close_rendezvous(self) -> None:
        if self._rendezvous is not None and self._process_id == os.getpid():
            self._rendezvous.close()


def _of_rank(config: EngineConfig) -> EngineConfig:
    """What the ranks are told: processors are shared, and as many steps are in flight as there are stages."""
    scheduler = config.scheduler
    if config.parallel.pp > 1 and not scheduler.in_flight_steps:
        scheduler = replace(scheduler, in_flight_steps=config.parallel.pp)
    return replace(config, num_threads=config.num_threads or 1, scheduler=scheduler)
