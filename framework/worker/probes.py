"""Hooks around kernel calls: they record shapes and times, and slow an op down by a known factor or time.

Without one nothing is wrapped. With one, a recording of a decode step is cut where a hook lies (on a CPU), or has events and waits
of its own (a CUDA graph).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..config import EngineConfig
from ..op_times import HOST, OpCall, OpTimes
from ..plan import is_recording, run_between, shape_reader
from .devices import Capture, Replay

_now = time.perf_counter


class Probes:
    """The hooks of one executor.

    recorded  the ops whose calls ``times`` gets; None = all
    scale     op -> factor, 1 or more, on the time that each of its calls takes (on a CPU); may be changed between steps for the ops
              that have a hook
    delay_s   op -> seconds to wait after each of its calls
    """

    def __init__(
        self,
        device: torch.device,
        dtype: str,
        recorded: Collection[str] | None,
        scale: Mapping[str, float],
        delay_s: Mapping[str, float],
    ) -> None:
        self.device, self.dtype, self._recorded = device, dtype, recorded
        self.times = OpTimes("wall" if device.type == "cpu" else "device")
        self.scale, self._delay_s = scale, delay_s
        self.ops_s = 0.0  # with what slows them down
        self._host_s = self._mark = 0.0  # of the host's work that it is not yet slowed down for; since when it works
        self._events = None if device.type == "cpu" else _Events(device, self.times)

    @classmethod
    def of(cls, config: EngineConfig, device: torch.device, dtype: str) -> Probes | None:
        """None where nothing is asked for."""
        executor = config.executor
        if not (config.profile or config.capture or executor.op_scale or executor.op_delay_s):
            return None
        if device.type != "cpu" and executor.op_scale:
            raise ValueError(
                f"executor.op_scale={executor.op_scale} on {device.type}: calls scale by their own time on a CPU only; give "
                "executor.op_delay_s={OP: seconds per call} instead"
            )
        return cls(device, dtype, None if config.profile else config.capture, executor.op_scale, executor.op_delay_s)

    def check(self, ops: Collection[str]) -> None:
        """Raises ValueError for a hook on an op that this model does not call."""
        for key, named in (
            ("capture", self._recorded or ()),
            ("executor.op_scale", self.scale),
            ("executor.op_delay_s", self._delay_s),
        ):
            unknown = [op for op in named if op not in ops and op != HOST]
            if unknown:
                raise ValueError(f"{key} names {unknown[0]!r}, which this model never calls; it calls {', '.join(sorted(ops))}")

    def around_kernel(self, op: str, impl: str, arguments: Callable[[tuple[Any, ...]], Mapping[str, Any]], run: Any) -> Any:
        """``run`` with hooks, or as it is where none is asked for. arguments: from those of a call to all of the op, by name."""
        recorded = self._recorded is None or op in self._recorded
        if not recorded and op not in self.scale and op not in self._delay_s:
            return run
        return _Probed(self, op, impl if recorded else None, arguments, run)

    def around_submit(self, submit: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """``submit`` of an executor, which then waits as long as the host is to be slower: before tokens get their times."""

        def probed(step: Any) -> Any:
            ops_before_s = self.ops_s
            handle = submit(step)
            if self._events is not None:
                self._events.settle()
            elif (scale := self.scale.get(HOST, 1.0)) > 1:
                host_s = self._host_s + _now() - self._mark - (self.ops_s - ops_before_s)
                _spin(_now() + (scale - 1) * host_s)
            self._host_s, self._mark = 0.0, _now()
            return handle

        return probed

    def around_step(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """``Engine.step``, which tells how long the host works before and after a submission."""

        def probed() -> Any:
            self._mark = _now()
            try:
                return step()
            finally:
                self._host_s += _now() - self._mark

        return probed

    def around_capture(self, capture: Capture) -> Capture:
        """What records decode steps, so that the calls of a replay are known, too."""
        return capture if self._events is None else self._events.around_capture(capture)

    def hook(
        self, op: str, impl: str | None, args: Callable[[], Mapping[str, Any]]
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """What to run before and after one call."""
        read = None if impl is None else _call_reader(op, impl, self.dtype, args())
        if self._events is not None:
            return self._events.hook(read, self._delay_s.get(op, 0.0))
        return _wall_hook(self, op, read, self._delay_s.get(op, 0.0))


class _Probed:
    """A bound kernel with hooks."""

    def __init__(self, probes: Probes, op: str, impl: str | None, arguments: Callable[..., Mapping[str, Any]], run: Any) -> None:
        self._probes, self._op, self._impl, self._arguments, self._run = probes, op, impl, arguments, run
        if (begin_step := getattr(run, "begin_step", None)) is not None:
            self.begin_step = begin_step

    def __call__(self, *args: Any) -> Any:
        begun = _now()
        before, after = self._probes.hook(self._op, self._impl, lambda: self._arguments(args))
        self._probes.times.overhead_s += _now() - begun
        run_between(before)
        result = self._run(*args)
        run_between(after)
        return result


def _call_reader(op: str, impl: str, dtype: str, args: Mapping[str, Any]) -> Callable[[], OpCall]:
    read = shape_reader(op, args)
    if read is None:
        bare = OpCall(op, impl, dtype, ())
        return lambda: bare
    known: dict[Any, OpCall] = {}

    def call() -> OpCall:
        shape = read()
        lens = shape.q_lens, shape.ctx_lens
        if lens not in known:
            known.clear()  # the layers of a step follow one another
            options = tuple(sorted(shape.options.items()))
            known[lens] = OpCall.of(op, impl, dtype, shape.dims, options=options, q_lens=lens[0], ctx_lens=lens[1])
        return known[lens]

    return call


def _wall_hook(
    probes: Probes, op: str, read: Callable[[], OpCall] | None, delay_s: float
) -> tuple[Callable[[], None], Callable[[], None]]:
    entered = begun = 0.0
    call: OpCall | None = None
    while_recorded = is_recording()  # the first call; all others are replays

    def before() -> None:
        nonlocal entered, begun, call, while_recorded
        entered = _now()
        if read is not None:
            call = replace(read(), while_recorded=True) if while_recorded else read()
            while_recorded = False
        begun = _now()

    def after() -> None:
        ended = _now()
        took = ended - begun
        wait_s = (probes.scale.get(op, 1.0) - 1) * took + delay_s
        if call is not None:
            probes.times.add(call, begun, took)
        if wait_s:
            _spin(_now() + wait_s)  # from now: what recording took is to come on top of it, as it does without a wait
        probes.ops_s += took + wait_s
        probes.times.overhead_s += _now() - entered - took - wait_s

    return before, after


def _spin(until_s: float) -> None:
    while _now() < until_s:
        pass


class _Events:
    """Calls on a GPU, timed by events in its stream; those in a graph run again with each of its replays."""

    def __init__(self, device: torch.device, times: OpTimes) -> None:
        self._device, self._times = device, times
        self._ran: list[_DeviceCall] = []
        self._cycles_per_s = 0.0
        self._origin = torch.cuda.Event(enable_timing=True)
        self._origin.record()
        self._origin_s = _now()

    def hook(self, read: Callable[[], OpCall] | None, delay_s: float) -> tuple[Callable[[], None], Callable[[], None]]:
        if delay_s and not self._cycles_per_s:
            self._cycles_per_s = _sleep_cycles_per_s()
        call = None if read is None else _DeviceCall(read)
        cycles = round(delay_s * self._cycles_per_s)

        def before() -> None:
            if call is not None:
                call.start.record()

        def after() -> None:
            if call is not None:
                call.end.record()
                self._ran.append(call)
            if cycles:
                torch.cuda._sleep(cycles)

        return before, after

    def around_capture(self, capture: Capture) -> Capture:
        def watched(run: Replay) -> Replay:
            calls: list[_DeviceCall] = []

            def collecting() -> torch.Tensor:
                kept, self._ran = self._ran, []
                try:
                    return run()
                finally:
                    calls[:], self._ran = self._ran, kept

            replay = capture(collecting)

            def again() -> torch.Tensor:
                self._ran += calls
                return replay()

            return again

        return watched

    def settle(self) -> None:
        """Waits for the step, and takes in its times."""
        torch.cuda.synchronize(self._device)
        for call in self._ran:
            start_s = self._origin_s + 1e-3 * self._origin.elapsed_time(call.start)
            self._times.add(call.read(), start_s, 1e-3 * call.start.elapsed_time(call.end))
        self._ran.clear()


class _DeviceCall:
    """Events around a call; inside a graph they are recorded by each replay."""

    def __init__(self, read: Callable[[], OpCall]) -> None:
        external = torch.cuda.is_current_stream_capturing()
        self.read = read
        self.start = torch.cuda.Event(enable_timing=True, external=external)
        self.end = torch.cuda.Event(enable_timing=True, external=external)


def _sleep_cycles_per_s() -> float:
    """How many of ``torch.cuda._sleep``'s cycles pass in a second."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a delay is measured before graphs are captured")
    start, end, cycles = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True), 20_000_000
    torch.cuda._sleep(cycles)  # clocks rise
    start.record()
    torch.cuda._sleep(cycles)
    end.record()
    end.synchronize()
    return cycles / (1e-3 * start.elapsed_time(end))
