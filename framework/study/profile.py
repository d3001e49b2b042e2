"""Where the time of a run went: the phases of every step, and its kernel calls.

A step is one ``Engine.step()``: it schedules and submits until enough steps are in flight, waits for the oldest and commits it. An
engine that is not profiled has no trace of this.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..op_times import SOURCES, OpCall, OpTimes
from .results import format_table, write_csv

if TYPE_CHECKING:
    from ..engine.engine import Engine, Step
    from ..outputs import RequestOutput

TRACE_FILE, OPS_FILE, STEPS_FILE, PROFILE_FILE = "trace.json", "op_times.csv", "steps.csv", "profile.csv"
OPS_COLUMNS = ("op", "impl", "dtype", "dims", "q_lens", "ctx_lens", "us", "count")
PHASES = ("schedule", "submit", "wait", "commit")
TRACED_STEPS = 100
"""Steps whose kernel calls are in the trace: the first ones, and as many of the slowest; of all others the phases are."""


@dataclass
class StepProfile:
    """One step. spans: (phase, start, seconds) in order; ops: first and end in ``OpTimes`` of what it submitted."""

    start_s: float
    end_s: float = 0.0
    num_rows: int = 0
    num_tokens: int = 0
    ops: tuple[int, int] = (0, 0)
    overhead_s: float = 0.0
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def phase_s(self, phase: str) -> float:
        return sum(seconds for name, _, seconds in self.spans if name == phase)


class Part(NamedTuple):
    """What took time: an op by its impl, or, in parentheses, a phase of the steps or what is left."""

    name: str
    impl: str
    calls: int
    seconds: float


class Profile:
    """Takes the phases of the engine's steps from now on. Raises ValueError for an engine whose executor takes no times."""

    def __init__(self, engine: Engine) -> None:
        if engine.executor.call_times is None:
            raise ValueError("profile=false: nothing of this engine's kernel calls is known; set profile=true")
        self.op_times: OpTimes = engine.executor.call_times
        self.op_times.clear()
        self.steps: list[StepProfile] = []
        self._now, self._open, self._mark = engine.clock.now, StepProfile(0.0), 0.0
        self._submit = engine.executor.submit
        engine.watch(self._around_step)
        setattr(engine.executor, "submit", self._timed_submit)  # noqa: B010

    def _around_step(self, step: Step) -> Step:
        def timed() -> list[RequestOutput]:
            self._open = StepProfile(self._now())
            self._mark = self._open.start_s
            first, overhead_s = len(self.op_times), self.op_times.overhead_s
            try:
                return step()
            finally:
                self._close("commit" if any(name == "wait" for name, *_ in self._open.spans) else "schedule")
                self._open.end_s = self._mark
                self._open.ops = first, len(self.op_times)
                self._open.overhead_s = self.op_times.overhead_s - overhead_s
                self.steps.append(self._open)

        return timed

    def _timed_submit(self, step_input: Any) -> Any:
        self._close("schedule")
        self._open.num_rows += len(step_input.seats)
        self._open.num_tokens += sum(step_input.num_tokens)
        handle = self._submit(step_input)
        self._close("submit")
        return _TimedHandle(handle, self)

    def waited(self, handle: Any) -> Any:
        """The output of a step in flight."""
        self._close("schedule")
        output = handle.result()
        self._close("wait")
        return output

    def _close(self, phase: str) -> None:
        now = self._now()
        if now > self._mark:
            self._open.spans.append((phase, self._mark, now - self._mark))
        self._mark = now

    def summary(self) -> list[Part]:
        """Kernel calls, phases, what is left. On a host, seconds sum to those of all steps; a device's calls and its idle time do
        so beside the phases."""
        return self._parts(self.steps)

    def _parts(self, steps: Sequence[StepProfile]) -> list[Part]:
        seconds: Counter[tuple[str, str]] = Counter()
        calls: Counter[tuple[str, str]] = Counter()
        for step in steps:
            for call, _, took, count in self.op_times.between(*step.ops):
                impl = f"{call.impl} (recorded)" if call.while_recorded else call.impl
                seconds[call.op, impl] += took  # type: ignore[assignment]
                calls[call.op, impl] += count
        ops_s, total_s = sum(seconds.values()), sum(step.seconds for step in steps)
        phases = {phase: sum(step.phase_s(phase) for step in steps) for phase in PHASES}
        if self.op_times.source == "wall":  # calls are part of the phase that submits them
            overhead_s = sum(step.overhead_s for step in steps)
            phases |= {"profile": overhead_s, "other": phases.pop("submit") - ops_s - overhead_s}
        else:
            phases |= {"other": total_s - sum(phases.values()), "device idle": max(0.0, total_s - ops_s)}
        ops = [Part(op, impl, calls[op, impl], took) for (op, impl), took in seconds.most_common()]
        return ops + [Part(f"({name})", "", len(steps), took) for name, took in phases.items()]

    def table(self) -> str:
        """The summary as text, and what its times are."""
        total_s = sum(step.seconds for step in self.steps)
        lines = [["part", "impl", "calls", "ms", "us each", "share"]]
        for part in self.summary():
            us, share = part.seconds / max(part.calls, 1) * 1e6, part.seconds / total_s if total_s else 0.0
            lines.append([part.name, part.impl, f"{part.calls}", f"{part.seconds * 1e3:.2f}", f"{us:.1f}", f"{share:.1%}"])
        notes = [f"{len(self.steps)} steps, {total_s:.3f} s; calls: {SOURCES[self.op_times.source]}"]
        if self.steps:
            notes.append(f"slowest step: {self.explain(max(self.steps, key=lambda step: step.seconds))}")
        return "\n".join([format_table(lines), "", *notes])

    def explain(self, step: StepProfile) -> str:
        """Where a step's time went, the largest parts first."""
        largest = sorted(self._parts([step]), key=lambda part: -part.seconds)[:6]
        at_s = step.start_s - self.steps[0].start_s
        parts = ", ".join(f"{part.name} {part.seconds * 1e3:.2f}" for part in largest if part.seconds > 0)
        return f"{step.seconds * 1e3:.2f} ms at {at_s:.3f} s, {step.num_rows} rows, {step.num_tokens} tokens: {parts}"

    def write(self, folder: Path) -> list[str]:
        """Writes the trace and the tables; returns their names."""
        write_csv(folder / PROFILE_FILE, [part._asdict() for part in self.summary()])
        write_csv(folder / OPS_FILE, op_rows(self.op_times), OPS_COLUMNS)
        start_s = self.steps[0].start_s if self.steps else 0.0
        write_csv(folder / STEPS_FILE, [self._step_row(step, start_s) for step in self.steps])
        events = ",\n".join(json.dumps(event) for event in self._events(start_s))
        text = (
            f'{{"displayTimeUnit": "ms", "otherData": {{"calls": {json.dumps(SOURCES[self.op_times.source])}}}, "traceEvents": [\n'
        )
        (folder / TRACE_FILE).write_text(text + events + "\n]}\n", encoding="utf-8")
        return [TRACE_FILE, PROFILE_FILE, OPS_FILE, STEPS_FILE]

    def _step_row(self, step: StepProfile, start_s: float) -> dict[str, Any]:
        phases = {f"{phase}_s": f"{step.phase_s(phase):.9g}" for phase in PHASES}
        ops_s = self.op_times.total_s(*step.ops)
        row = {"start_s": f"{step.start_s - start_s:.9g}", "step_s": f"{step.seconds:.9g}", **phases, "ops_s": f"{ops_s:.9g}"}
        return {**row, "profile_s": f"{step.overhead_s:.9g}", "num_rows": step.num_rows, "num_tokens": step.num_tokens}

    def _events(self, start_s: float) -> Iterator[dict[str, Any]]:
        """Of Chrome's trace event format, complete events (ph X) in microseconds: a track of the engine, one of kernel calls."""
        names = {
            1: "engine",
            2: {"wall": "kernels (host)", "device": "kernels (device)"}.get(self.op_times.source, "kernels (model)"),
        }
        for track, name in names.items():
            yield {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}}
        slowest = sorted(range(len(self.steps)), key=lambda i: -self.steps[i].seconds)[:TRACED_STEPS]
        traced = {*range(min(TRACED_STEPS, len(self.steps))), *slowest}

        def event(track: int, name: str, at_s: float, seconds: float, args: Mapping[str, Any]) -> dict[str, Any]:
            times = {"ts": round((at_s - start_s) * 1e6, 3), "dur": round(seconds * 1e6, 3)}
            return {"ph": "X", "pid": 1, "tid": track, "name": name, **times, "args": args}

        for number, step in enumerate(self.steps):
            found = {"step": number, "rows": step.num_rows, "tokens": step.num_tokens}
            yield event(1, "step", step.start_s, step.seconds, found)
            for phase, at_s, seconds in step.spans:
                yield event(1, phase, at_s, seconds, {})
            if number in traced:
                for call, at_s, seconds, count in self.op_times.between(*step.ops):
                    shape = {
                        "impl": call.impl,
                        **dict(call.dims),
                        "q_lens": lens_text(call.q_lens),
                        "ctx_lens": lens_text(call.ctx_lens),
                    }
                    yield event(2, call.op, at_s, seconds, {**shape, "calls": count})


class _TimedHandle:
    """A step in flight, whose waiting is timed."""

    __slots__ = ("_handle", "_profile")

    def __init__(self, handle: Any, profile: Profile) -> None:
        self._handle, self._profile = handle, profile

    def result(self) -> Any:
        return self._profile.waited(self._handle)


def op_rows(op_times: OpTimes) -> list[dict[str, Any]]:
    """A row per op, impl and shape: median microseconds of a call, which an interrupt does not move, and how many there were. Calls
    of no known shape are left out, and those that were made while they were recorded."""
    seconds: dict[OpCall, list[float]] = defaultdict(list)
    counts: Counter[OpCall] = Counter()
    for call, _, took, count in op_times:
        if call.q_lens and not call.while_recorded:
            seconds[call].append(took / count)
            counts[call] += count
    rows = []
    for call, each_s in seconds.items():
        lens = {"q_lens": lens_text(call.q_lens), "ctx_lens": lens_text(call.ctx_lens)}
        us = f"{statistics.median(each_s) * 1e6:.6g}"
        row = {"op": call.op, "impl": call.impl, "dtype": call.dtype, "dims": json.dumps(dict(call.dims)), **lens}
        rows.append({**row, "us": us, "count": counts[call]})
    return sorted(rows, key=lambda row: (row["op"], row["dims"]))


def lens_text(lens: Iterable[int]) -> str:
    """Lengths, equal neighbours together: 3 requests of 1 and one of 128 are ``1*3 128``."""
    runs: list[list[int]] = []
    for length in lens:
        if runs and runs[-1][0] == length:
            runs[-1][1] += 1
        else:
            runs.append([length, 1])
    return " ".join(f"{length}*{count}" if count > 1 else f"{length}" for length, count in runs)
