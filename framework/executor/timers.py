"""How long a kernel takes: as measured where it was, else as the most similar one that was, else as the device's memory, units and
links allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import ExecutorConfig
from .calibration import Calibration, OperatorTimer
from .operators import CostFunction, number_format, operator
from .simulated_device import SimulatedDevice

TRAFFIC: Mapping[str, Callable[[float], float]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: (ranks - 1) / ranks,
    "send": lambda ranks: 1.0,
}
"""What goes between devices: how often each link carries the elements."""


class Seconds(Protocol):
    """Of a call of one op with fixed dims."""

    def __call__(self, q_lens: Sequence[int], ctx_lens: Sequence[int]) -> float:
        """New tokens of each request, and its tokens in the cache with these."""

    def of_decode(self, num_requests: int, mean_ctx_len: int) -> float:
        """Of attention over requests with one new token each."""


class Estimate:
    """Without measurements of the op: work over what the device can do, and the least time of a kernel."""

    def __init__(self, cost: CostFunction, dims: Mapping[str, float], peak: float, bandwidth: float, floor_s: float) -> None:
        self._cost, self._dims, self._peak, self._bandwidth, self._floor_s = cost, dims, peak, bandwidth, floor_s

    def __call__(self, q_lens: Sequence[int], ctx_lens: Sequence[int], times: int = 1) -> float:
        work = self._cost(self._dims, q_lens, ctx_lens)
        return times * max(work.flops / self._peak, work.bytes / self._bandwidth) + self._floor_s

    def of_decode(self, num_requests: int, mean_ctx_len: int) -> float:
        return self([1], [mean_ctx_len], num_requests)


class Traffic:
    """What goes between devices: elements over a link."""

    def __init__(self, seconds_per_element: float, floor_s: float) -> None:
        self._each_s, self._floor_s = seconds_per_element, floor_s

    def __call__(self, q_lens: Sequence[int], ctx_lens: Sequence[int]) -> float:
        return sum(q_lens) * self._each_s + self._floor_s

    def of_decode(self, num_requests: int, mean_ctx_len: int) -> float:
        raise AssertionError("only attention decodes")


@dataclass
class Timer:
    """Seconds of a call of one op with fixed dims, times a factor. op: what the call counts as."""

    op: str
    seconds: Seconds | OperatorTimer
    factor: float

    def __call__(self, q_lens: Sequence[int], ctx_lens: Sequence[int]) -> float:
        return self.factor * self.seconds(q_lens, ctx_lens)

    def of_decode(self, num_requests: int, mean_ctx_len: int) -> float:
        return self.factor * self.seconds.of_decode(num_requests, mean_ctx_len)


class Timers:
    """Binds calls to times, as ``executor.calibration`` says.

    costs  op -> its cost function
    """

    def __init__(self, config: ExecutorConfig, device: SimulatedDevice, costs: Mapping[str, CostFunction]) -> None:
        self._config, self._device, self._costs = config, device, costs
        self.free, self.calibration = config.calibration == "free", device.calibration
        self.bound: list[Timer] = []

    def bind(self, op: str, dtype: str, dims: Mapping[str, float], name: str | None = None) -> Timer:
        """dtype: of the activations; dims: as the op's cost function takes them; of what goes between devices ``num_ranks``,
        ``act_bytes`` and ``graph`` (1 in a recording), with q_lens = [elements]; name: of the op that the call counts as, if it is
        another. Raises ValueError for a number format that the device cannot compute."""
        found = self._measured(self.calibration, op, dtype, dims) if self.calibration else None
        name = name or op
        timer = Timer(name, found or self._estimate(op, dtype, dims), self._config.op_scale.get(name, 1.0))
        self.bound.append(timer)
        return timer

    def check_scaled(self) -> None:
        """Raises ValueError for a factor on an op that nothing calls."""
        ops = {timer.op for timer in self.bound}
        for op in self._config.op_scale:
            if op not in ops:
                raise ValueError(f"executor.op_scale.{op} would change nothing: this model's steps call {', '.join(sorted(ops))}")

    def origin(self, op: str) -> tuple[str, str]:
        """(what stands behind the op's times and how far to trust it, where the numbers come from)."""
        timers = [timer.seconds for timer in self.bound if timer.op == op]
        after = dict.fromkeys(timer.after for timer in timers if isinstance(timer, OperatorTimer) and timer.after)
        measured = [timer for timer in timers if isinstance(timer, OperatorTimer) and not timer.after]
        if self.calibration is None:
            return self._config.calibration, "device table"
        how = "transferred" if self.calibration.transferred else "calibrated"
        if after and not measured:
            return f"estimated after {', '.join(after)}, not measured ({how})", self.calibration.source
        if not measured:
            return f"estimated from bytes and flops, not measured ({how} bandwidth)", self.calibration.source
        outside, calls = sum(timer.extrapolated for timer in measured), sum(timer.calls for timer in measured)
        notes = [f"{outside} of {calls} timings extrapolated"] if outside else []
        notes += [f"{len(timers) - len(measured)} of {len(timers)} kinds of calls estimated"] if len(measured) < len(timers) else []
        return f"{how} ({', '.join(notes)})" if notes else how, self.calibration.source

    def _measured(self, calibration: Calibration, op: str, dtype: str, dims: Mapping[str, float]) -> OperatorTimer | None:
        return calibration.timer(op, dtype, dims) or calibration.similar(op, dtype, dims, self._device.flops_s)

    def _estimate(self, op: str, dtype: str, dims: Mapping[str, float]) -> Seconds:
        if self.free:
            efficiency, floor_s, bandwidth = math.inf, 0.0, math.inf
        elif self.calibration is None:
            efficiency, floor_s, bandwidth = self._config.efficiency, self._config.kernel_overhead_s, self._device.copy_bytes_s
        else:
            efficiency, floor_s, bandwidth = 1.0, self.calibration.launch_floor_s, self.calibration.copy_bytes_s
        if op in TRAFFIC:
            seconds_per_element = TRAFFIC[op](dims["num_ranks"]) * dims["act_bytes"] / (self._device.link_bytes_s * efficiency)
            return Traffic(seconds_per_element, floor_s)
        if op == "moe_experts" and (ep := dims["ep"]) > 1:  # the busiest rank is not known: as if all had the same share
            dims = {**dims, "num_experts": dims["num_experts"] / ep, "top_k": dims["top_k"] / ep}
        cost = operator(op, dims).cost or self._costs[op]
        return Estimate(cost, dims, self._peak(op, dtype) * efficiency, bandwidth * efficiency, floor_s)

    def _peak(self, op: str, dtype: str) -> float:
        wanted = number_format(op, dtype)
        if wanted not in self._device.flops_s:
            known = ", ".join(self._device.flops_s)
            raise ValueError(f"device {self._device.name} has no ceiling for {wanted}, which {op} needs; it has {known}")
        return self._device.flops_s[wanted]
