"""Serves a workload with another system, and records what our engine's driver records."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from tqdm import tqdm

from framework.clock import WallClock
from framework.study.compose import ServeConfig
from framework.study.driver import Arrivals
from framework.study.records import RequestRecord, RunRecord
from framework.study.workload import WorkloadRequest

from .continuous import ContinuousBatching
from .static import StaticBatches
from .transformers_library import Completion, Library


class Mode(Protocol):
    """A way to serve requests."""

    mode: str

    def add(self, request_id: str, prompt: list[int], limit: int) -> None:
        """Takes in a request for at most ``limit`` tokens."""

    def finished(self, timeout_s: float | None) -> list[Completion]:
        """Complete completions, waiting for one; a mode that can admit meanwhile gives up after ``timeout_s`` (None: never)."""

    def close(self) -> None:
        """Frees what it holds."""


def open_mode(library: Library, config: ServeConfig, workload: Sequence[WorkloadRequest], eos_ids: Collection[int]) -> Mode:
    """The mode of ``config.system``. ``eos_ids`` end a completion, unless the workload ignores them."""
    stop_ids = () if config.workload.ignore_eos else eos_ids
    if config.system == "transformers_static":
        return StaticBatches(library, config.workload.sampling, stop_ids)
    num_tokens = sum(len(request.prompt_token_ids) + (request.sampling.max_tokens or 0) for request in workload)
    return ContinuousBatching(library, config.workload.sampling, stop_ids, num_tokens)


def serve_workload(mode: Mode, library: Library, workload: Sequence[WorkloadRequest], progress: bool = False) -> RunRecord:
    """Serves ``workload`` to the end, in real time. A request is admitted when it has arrived; one that could never be served is
    recorded with the reason. There are no records of steps, which the library does not show."""
    record, arrivals, clock = RunRecord(), Arrivals(workload), WallClock()
    running: dict[str, tuple[int, int, RequestRecord]] = {}
    start_s = clock.now()
    with tqdm(total=len(workload), unit="req", disable=None if progress else True) as bar:

        def ends(index: int, now_s: float) -> None:
            arrivals.finished(index, now_s)
            bar.update()

        while arrivals.next_s is not None or running:
            while arrivals.next_s is not None and start_s + arrivals.next_s <= clock.now():
                arrival_s, index = arrivals.pop()
                request = workload[index]
                found = RequestRecord(str(index), request.user, arrival_s, len(request.prompt_token_ids))
                record.requests.append(found)
                try:
                    limit = library.limit(len(request.prompt_token_ids), request.sampling.max_tokens)
                except ValueError as error:
                    found.error = str(error)
                    ends(index, clock.now() - start_s)
                    continue
                mode.add(found.request_id, request.prompt_token_ids, limit)
                running[found.request_id] = index, limit, found
            if running:
                timeout_s = None if arrivals.next_s is None else start_s + arrivals.next_s - clock.now()
                for completion in mode.finished(timeout_s):
                    index, limit, found = running.pop(completion.request_id)
                    found.token_times_s = [time_s - start_s for time_s in completion.times_s]
                    found.error = completion.error
                    if completion.error is None:
                        found.finish_reason = "length" if len(completion.token_ids) == limit else "stop"
                    ends(index, found.token_times_s[-1] if found.token_times_s else clock.now() - start_s)
            elif arrivals.next_s is not None:
                clock.advance_to(start_s + arrivals.next_s)
    return record
