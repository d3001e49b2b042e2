"""Runs of a workload in which one op, or the host, takes a known factor of its time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from framework.build import build_engine
from framework.engine.engine import Engine
from framework.executor.kinds import EXECUTORS
from framework.op_times import HOST
from framework.study.compose import ServeConfig
from framework.study.driver import run_workload
from framework.study.metrics import compute_metrics
from framework.study.records import RunRecord
from framework.study.sensitivity import METRICS, OTHERS, PART, TWICE
from framework.study.workload import WorkloadRequest, build_workload

PLUGIN = Path(__file__).with_name("twice.py")


@dataclass(frozen=True)
class Setting:
    """A run: ``part`` (an op, or ``host``) takes ``factor`` times as long, for the study or in truth (``impl``: by a kernel).
    ``is_base``: it does not; a run that those with the factor are compared with."""

    part: str
    factor: float
    impl: str = ""
    is_base: bool = False


class Rebuilt:
    """A simulated device or a GPU: an engine for every setting. ``parts``: what can be scaled."""

    def __init__(self, config: ServeConfig) -> None:
        self._config, self._simulated = config, EXECUTORS[config.executor.kind].virtual_clock
        self._calls: dict[str, tuple[float, int]] = {}
        self.run(Setting(HOST, 1.0, is_base=True), config.seed)
        self.parts = [*self._calls, *([HOST] if self._simulated else [])]

    def run(self, setting: Setting, seed: int) -> dict[str, float]:
        """The metrics, and PART and, where it is not always the same, OTHERS of each."""
        if setting.impl:
            raise ValueError("--twice needs a processor: its kernels are written for one")
        if setting.factor < 1 and not self._simulated:
            raise ValueError("--factors below 1 need a processor or a simulated device; on a GPU give --factors 1.25,2")
        executor, part, factor = self._config.executor, setting.part, 1.0 if setting.is_base else setting.factor
        if self._simulated and part == HOST:
            executor = replace(executor, step_overhead_s=factor * executor.step_overhead_s, launch_s=factor * executor.launch_s)
        elif self._simulated:
            executor = replace(executor, op_scale={part: factor})
        elif factor > 1:
            seconds, calls = self._calls[part]
            executor = replace(executor, op_delay_s={part: (factor - 1) * seconds / calls})
        engine = build_engine(replace(self._config, executor=executor, profile=not self._simulated).engine())
        record = _serve(engine, self._config, seed)
        found = _simulated_calls(engine) if self._simulated else _calls(engine)
        if setting.is_base:
            self._calls = found
        engine.shutdown()
        part_s = found.get(part, (0.0, 0))[0]
        return compute_metrics(record, self._config.slo) | {PART.format(metric): part_s for metric in METRICS}


class OnProcessor:
    """One engine, whose hooks wait as a setting says, and one more for each kernel that works twice; see ``Rebuilt``."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = replace(config, profile=True)
        self._engines: dict[str, Engine] = {}
        self._met: set[tuple[str, int]] = set()
        engine = self._engine(Setting(HOST, 1.0, is_base=True), config.seed)
        self.parts = [*_calls(engine), HOST]

    def run(self, setting: Setting, seed: int) -> dict[str, float]:
        """See ``Rebuilt.run``."""
        engine, faster = self._engine(setting, seed), min(setting.factor, 1.0)
        if faster < 1:
            scale = {part: 1 / faster for part in self.parts if part != setting.part or setting.is_base}
        else:
            scale = {} if setting.impl or setting.is_base else {setting.part: setting.factor}
        engine.executor.probes.scale = scale  # type: ignore[attr-defined]
        metrics = compute_metrics(_serve(engine, self._config, seed, faster), self._config.slo)
        return metrics | _by_phase(engine, setting.part)

    def _engine(self, setting: Setting, seed: int) -> Engine:
        """That of the setting's kernel, once it has served the same requests: recordings are made, code is compiled."""
        key = setting.impl and setting.part
        if key not in self._engines:
            config = self._config
            if setting.impl:
                kernels = {**config.kernels, setting.part: setting.impl}
                config = replace(config, kernels=kernels, plugins=[*config.plugins, str(PLUGIN)])
            self._engines[key] = build_engine(config.engine())
        if (key, seed) not in self._met:
            self._met.add((key, seed))
            self._engines[key].executor.probes.scale = {}  # type: ignore[attr-defined]
            _serve(self._engines[key], self._config, seed)
        return self._engines[key]


def measure(
    subject: Rebuilt | OnProcessor,
    parts: Sequence[str],
    factors: Sequence[float],
    twice: Sequence[str],
    repeats: Sequence[int],
    seed: int,
) -> Iterator[list[dict[str, Any]]]:
    """By repeat, its rows (see ``sensitivity``): of each part in turn, in a new order, its factors and, among them, a run without
    change; of those in ``twice`` a kernel that works twice, too."""
    with tqdm(total=len(repeats) * len(parts), unit="part", disable=None) as bar:
        for repeat in repeats:
            rows, order = [], random.Random(seed + repeat)
            for part in order.sample(parts, len(parts)):
                bases = [1.0, *(factor for factor in factors if factor < 1 and isinstance(subject, OnProcessor))]
                settings = [Setting(part, factor) for factor in factors]
                settings += [Setting(part, factor, is_base=True) for factor in bases]
                order.shuffle(settings)
                settings += [Setting(part, 2.0, TWICE)] if part in twice else []
                for setting in settings:
                    metrics = subject.run(setting, seed + repeat)
                    names = [key.format(name) for key in ("{}", PART, OTHERS) for name in METRICS if key.format(name) in metrics]
                    rows.append({**vars(setting), "repeat": repeat, **{name: metrics[name] for name in names}})
                bar.update()
            yield rows


def _serve(engine: Engine, config: ServeConfig, seed: int, faster: float = 1.0) -> RunRecord:
    """Requests come 1 / ``faster`` times as late, and all times are told ``faster`` times as long."""
    encode = engine.inputs.tokenizer.encode if engine.inputs.tokenizer else None
    workload = build_workload(replace(config.workload, seed=seed), engine.executor.vocab_size, encode)
    engine.reset_prefix_cache()
    if engine.executor.call_times is not None:
        engine.executor.call_times.clear()
    record = run_workload([engine], [_later(request, 1 / faster) for request in workload])
    if error := next((request.error for request in record.requests if request.error), None):
        raise ValueError(f"the engine refused a request: {error}")
    for request in record.requests:
        request.arrival_s *= faster
        request.token_times_s = [time_s * faster for time_s in request.token_times_s]
    return record


def _later(request: WorkloadRequest, factor: float) -> WorkloadRequest:
    think_time_s = None if request.think_time_s is None else factor * request.think_time_s
    return replace(request, arrival_s=factor * request.arrival_s, think_time_s=think_time_s)


def _by_phase(engine: Engine, part: str) -> dict[str, float]:
    """What the calls of ``part`` took, and all others: in steps with a prompt (for TTFT), in others (TPOT), in all."""
    assert engine.executor.call_times is not None
    first = next(iter(engine.executor.call_times))[0].op  # with which every step begins
    steps: list[list[float]] = []  # of each the part's seconds, the others', and whether it has a prompt
    for call, _, took, _ in engine.executor.call_times:
        if call.op == first:
            steps.append([0.0, 0.0, False])
        steps[-1][call.op != part] += took
        steps[-1][2] = steps[-1][2] or call.op == "paged_attention_prefill"
    found = np.array(steps)
    prompts, decodes = (found[found[:, 2] == which, :2].sum(0) for which in (True, False))
    phases = dict(zip(METRICS, (prompts, decodes, prompts + decodes), strict=True))
    return {key.format(metric): float(s) for metric, both in phases.items() for key, s in zip((PART, OTHERS), both)}


def _calls(engine: Engine) -> dict[str, tuple[float, int]]:
    """op -> seconds and number of its calls in the last run."""
    found: dict[str, tuple[float, int]] = {}
    assert engine.executor.call_times is not None
    for call, _, took, count in engine.executor.call_times:
        seconds, calls = found.get(call.op, (0.0, 0))
        found[call.op] = seconds + took, calls + count
    return found


def _simulated_calls(engine: Engine) -> dict[str, tuple[float, int]]:
    return {op: (entry["seconds"], entry["calls"]) for op, entry in engine.plan_report().items() if entry["calls"]}
