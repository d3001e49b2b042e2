"""How long calls take, several contenders in one run: a sample of each in turn (A B C A B C ...), so that drift of clocks and
neighbours on the machine meet all of them alike.

On a GPU a sample is one replay of a captured graph of many calls, timed by device events: the host's cost of a launch does not
count, as it does not in an engine that replays its steps. Calls go through several copies of their inputs in turn, as many as
it takes to find none of them in the L2 cache. On a CPU a sample is a loop of calls between two reads of the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Literal

import torch

Call = Callable[[], Any]
Mode = Literal["graph", "eager"]

SAMPLE_S = 1e-3
"""Shortest sample: far above the clock's resolution and the cost of an event."""
MAX_CALLS = 256
"""Most calls in one sample."""
COLD_FACTOR = 2.0
"""All copies of the inputs together are at least so many times the L2 cache."""


@dataclass(frozen=True)
class Subject:
    """What is timed: ``calls``, one per copy of the inputs. ``capture``: can be captured into a CUDA graph."""

    calls: Sequence[Call]
    capture: bool = True


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles over the samples."""

    median_s: float
    p25_s: float
    p75_s: float
    num_samples: int
    calls_per_sample: int
    mode: Mode


@dataclass
class _Sampler:
    """Draws samples (seconds per call) of one subject."""

    draw: Callable[[], float]
    num_calls: int
    mode: Mode
    samples: list[float] = field(default_factory=list)


def num_copies(touched_bytes: float, held_bytes: int, cache_bytes: int, memory_bytes: int = 8 << 30) -> int:
    """Copies of inputs after which none is left in a cache of ``cache_bytes``. ``touched_bytes``: what a call moves;
    ``held_bytes``: what a copy takes, all copies at most ``memory_bytes``."""
    wanted = -(-COLD_FACTOR * cache_bytes // max(touched_bytes, 1.0))
    return int(max(1, min(wanted, memory_bytes // max(held_bytes, 1), MAX_CALLS)))


def interleave(
    subjects: Mapping[str, Subject], device: torch.device, num_rounds: int = 30, limit_s: float = 10.0, min_rounds: int = 5
) -> dict[str, Timing]:
    """Times all subjects: ``num_rounds`` samples of each, fewer (but ``min_rounds``) where ``limit_s`` is over before."""
    samplers = {name: _sampler(subject, device) for name, subject in subjects.items()}
    start = time.perf_counter()
    for done in range(num_rounds):
        if done >= min_rounds and time.perf_counter() - start > limit_s:
            break
        for sampler in samplers.values():
            sampler.samples.append(sampler.draw())
    return {name: _timing(sampler) for name, sampler in samplers.items()}


def time_call(call: Call, device: torch.device) -> float:
    """Median seconds of one callable on its own."""
    return interleave({"": Subject([call])}, device, num_rounds=10)[""].median_s


def _timing(sampler: _Sampler) -> Timing:
    if len(sampler.samples) > 1:
        low, median, high = statistics.quantiles(sampler.samples, n=4, method="inclusive")
    else:
        low = median = high = sampler.samples[0]
    return Timing(median, low, high, len(sampler.samples), sampler.num_calls, sampler.mode)


def _sampler(subject: Subject, device: torch.device) -> _Sampler:
    if device.type == "cuda":
        return _cuda_sampler(subject, device)
    for call in subject.calls:  # warm-up: compilation, first touch of memory
        call()
    start = time.perf_counter()
    subject.calls[0]()
    calls = _enough(subject.calls, time.perf_counter() - start)
    work = _in_a_row(calls)

    def draw() -> float:
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / len(calls)

    return _Sampler(draw, len(calls), "eager")


def _cuda_sampler(subject: Subject, device: torch.device) -> _Sampler:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def between_events(work: Call) -> float:
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e-3

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # as capture asks for
        for call in subject.calls:
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    prepare = _captured if subject.capture else _in_a_row
    pilot = prepare(subject.calls)
    pilot()
    calls = _enough(subject.calls, between_events(pilot) / len(subject.calls))
    work = prepare(calls)
    work()
    return _Sampler(lambda: between_events(work) / len(calls), len(calls), "graph" if subject.capture else "eager")


def _in_a_row(calls: Sequence[Call]) -> Call:
    def run_all() -> None:
        for call in calls:
            call()

    return run_all


def _captured(calls: Sequence[Call]) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _in_a_row(calls)()
    return graph.replay


def _enough(calls: Sequence[Call], once_s: float) -> list[Call]:
    """All copies at least once, then again until a sample is long enough."""
    wanted = max(len(calls), min(MAX_CALLS, -(-SAMPLE_S // max(once_s, 1e-7))))
    return list(islice(cycle(calls), int(wanted)))
