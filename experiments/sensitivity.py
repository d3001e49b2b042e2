"""Which kernel is worth writing: how TTFT, TPOT and goodput of a workload move if one op's time is scaled.

    python experiments/sensitivity.py workload=closed_loop                                  tiny, on this machine's processor
    python experiments/sensitivity.py model=llama-3-8b executor=simulated workload=random   a device that is not here, exactly
    python experiments/sensitivity.py workload=closed_loop --twice linear,silu_and_mul      ... held to kernels that work twice

On a simulated device an op's time is a factor. On a processor each of its calls is followed by a busy wait, as long as
(factor - 1) times what that call took; a faster op is all others, and the rest of each step (``host``), slower by 1 / factor while
requests come so much later, and all times rescaled. On a GPU the waits are spin kernels of a fixed length, (factor - 1) times the
op's mean time, and factors below 1 are not available. Runs take turns in a new order in every repeat, and every op has a run
without change of its own beside its factors; repeats differ in the workload's seed.

Overrides are those of experiments/serve.py. The folder gets elasticities.csv, runs.csv, sensitivity.png and config.json.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.build import build_engine, freeze_garbage
from framework.engine.engine import Engine
from framework.executor.kinds import EXECUTORS
from framework.study.compose import CONFIG_FILE, ServeConfig, compose, save_config
from framework.study.driver import run_workload
from framework.study.metrics import compute_metrics
from framework.study.records import RunRecord
from framework.study.results import format_table
from framework.study.sensitivity import ALL, METRICS, Elasticity, as_rows, as_text, elasticities
from framework.study.statistics import mean_interval
from framework.study.workload import WorkloadRequest, build_workload

ROOT = Path(__file__).resolve().parents[1]
HOST = "host"
FACTORS = (0.5, 0.8, 1.25, 2.0)
TWICE = "twice"
TABLE_FILE, RUNS_FILE, AGREEMENT_FILE, PLOT_FILE = "elasticities.csv", "runs.csv", "agreement.csv", "sensitivity.png"


@dataclass(frozen=True)
class Setting:
    """A run: ``part`` (an op, or ``host``) takes ``factor`` times as long, for the study or in truth (``impl``: by a kernel)."""

    part: str
    factor: float
    impl: str = ""


class Rebuilt:
    """A simulated device or a GPU: an engine for every setting.

    parts    what can be scaled
    seconds  part -> in the runs without change
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config, self.seconds = config, dict[str, float]()
        self._simulated = EXECUTORS[config.executor.kind].virtual_clock
        self._mean_s: dict[str, float] = {}
        self.run(Setting(HOST, 1.0), config.seed)
        self.parts = [*self.seconds, *([HOST] if self._simulated else [])]

    def run(self, setting: Setting, seed: int) -> dict[str, float]:
        """The metrics."""
        if setting.impl:
            raise ValueError("--twice needs a processor: its kernels are written for one")
        if setting.factor < 1 and not self._simulated:
            raise ValueError("--factors below 1 need a processor or a simulated device; on a GPU give --factors 1.25,2")
        executor, part, factor = self._config.executor, setting.part, setting.factor
        if self._simulated and part == HOST:
            executor = replace(executor, step_overhead_s=factor * executor.step_overhead_s, launch_s=factor * executor.launch_s)
        elif self._simulated:
            executor = replace(executor, op_scale={part: factor})
        elif factor > 1:
            executor = replace(executor, op_delay_s={part: (factor - 1) * self._mean_s[part]})
        engine = build_engine(replace(self._config, executor=executor, profile=not self._simulated).engine())
        record = _serve(engine, self._config, seed)
        if factor == 1.0:
            self._account(engine)
        engine.shutdown()
        return compute_metrics(record, self._config.slo)

    def _account(self, engine: Engine) -> None:
        if self._simulated:
            found = {op: (entry["seconds"], entry["calls"]) for op, entry in engine.plan_report().items()}
        else:
            found = _seconds(engine)
        for op, (seconds, calls) in found.items():
            self.seconds[op] = self.seconds.get(op, 0.0) + seconds
            self._mean_s[op] = seconds / max(calls, 1)


class OnProcessor:
    """One engine, whose hooks wait as a setting says, and one more for each kernel that works twice; see ``Rebuilt``.

    factors  op -> by how much its calls took longer with the kernel that works twice, run by run
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = replace(config, profile=True)
        self.seconds: dict[str, float] = {}
        self.factors: dict[str, list[float]] = defaultdict(list)
        self._engines: dict[str, Engine] = {}
        self._last: dict[str, tuple[float, int]] = {}
        self.run(Setting(HOST, 1.0), config.seed)
        self.parts = [*_seconds(self._engines[""]), HOST]
        self.seconds.clear()  # first times: recordings were made

    def run(self, setting: Setting, seed: int) -> dict[str, float]:
        """The metrics."""
        engine, faster = self._engine(setting), min(setting.factor, 1.0)
        scale = {} if setting.impl or setting.factor <= 1 else {setting.part: setting.factor}
        if faster < 1:
            scale = {part: 1 / faster for part in self.parts if part != setting.part}
        engine.executor.probes.scale = scale  # type: ignore[attr-defined]
        metrics = compute_metrics(_serve(engine, self._config, seed, faster), self._config.slo)
        found = _seconds(engine)
        if setting.impl:
            before, now = self._last[setting.part], found[setting.part]
            self.factors[setting.part].append(now[0] / now[1] / (before[0] / before[1]))
        elif setting.factor == 1.0:
            self._last = found
            self.seconds = {op: self.seconds.get(op, 0.0) + seconds for op, (seconds, _) in found.items()}
        return metrics

    def _engine(self, setting: Setting) -> Engine:
        key = setting.impl and setting.part
        if key not in self._engines:
            config = self._config
            if setting.impl:
                plugin = str(Path(__file__).with_name("twice.py"))
                kernels = {**config.kernels, setting.part: setting.impl}
                config = replace(config, kernels=kernels, plugins=[*config.plugins, plugin])
            self._engines[key] = build_engine(config.engine())
            _serve(self._engines[key], config, config.seed)
        return self._engines[key]


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


def _seconds(engine: Engine) -> dict[str, tuple[float, int]]:
    """op -> seconds and number of its calls in the last run."""
    found: dict[str, tuple[float, int]] = {}
    assert engine.executor.call_times is not None
    for call, _, took, count in engine.executor.call_times:
        seconds, calls = found.get(call.op, (0.0, 0))
        found[call.op] = seconds + took, calls + count
    return found


def measure(
    subject: Rebuilt | OnProcessor, factors: Sequence[float], twice: Sequence[str], repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Rows (part, factor, impl, repeat, metrics): of each part in turn its factors and, among them, a run without change."""
    rows = []
    order = random.Random(seed)
    with tqdm(total=repeats * len(subject.parts), unit="part", disable=None) as bar:
        for repeat in range(repeats):
            for part in order.sample(subject.parts, len(subject.parts)):
                settings = [Setting(part, factor) for factor in (1.0, *factors)]
                order.shuffle(settings)
                settings += [Setting(part, 2.0, TWICE)] if part in twice else []
                for setting in settings:
                    metrics = subject.run(setting, seed + repeat)
                    rows.append({**vars(setting), "repeat": repeat, **{name: metrics.get(name) for name in METRICS}})
                bar.update()
    return rows


def ratios(rows: Sequence[Mapping[str, Any]], metric: str, impl: str = "") -> dict[tuple[str, float], list[float]]:
    """(part, factor) -> the metric over that of the run without change beside it, by repeat. A metric that was not observed leaves
    nothing."""
    base = {(row["part"], row["repeat"]): row[metric] for row in rows if row["factor"] == 1.0 and not row["impl"]}
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        if row["factor"] != 1.0 and row["impl"] == impl and row[metric] and base[row["part"], row["repeat"]]:
            found[row["part"], row["factor"]].append(row[metric] / base[row["part"], row["repeat"]])
    return dict(found)


def agreement(rows: Sequence[Mapping[str, Any]], factors: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Of each kernel that works twice: what a metric did, beside what it did under the delay; the logarithm of their ratio, with
    its interval, is to hold 0."""
    lines = [["metric", "op", "its calls took", "metric with it", "with the delay x 2", "of both (95 %)", "agree"]]
    for metric in ("ttft_mean_s", "tpot_mean_s"):
        true, delayed = ratios(rows, metric, TWICE), ratios(rows, metric)
        for (part, factor), values in true.items():
            logs = np.log(values) - np.log(delayed[part, factor])
            interval = mean_interval(logs)
            means = [f"{np.exp(np.log(found).mean()):.3f}" for found in (values, delayed[part, factor])]
            both = f"{math.exp(interval.low):.3f} to {math.exp(interval.high):.3f}"
            agree = "no" if interval.excludes(0.0) else "yes"
            lines.append([metric, part, f"x {statistics.median(factors[part]):.2f}", *means, both, agree])
    return lines


def draw(found: Sequence[Elasticity], title: str, path: Path) -> None:
    """A bar per part with its interval, side by side for each metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = list(dict.fromkeys(each.metric for each in found))
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(4.2 * len(metrics), 4.4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        bars = [each for each in found if each.metric == metric][::-1]
        means = [each.mean for each in bars]
        low = [0.0 if math.isnan(each.interval.low) else each.mean - each.interval.low for each in bars]
        high = [0.0 if math.isnan(each.interval.high) else each.interval.high - each.mean for each in bars]
        colors = ["tab:gray" if each.part == ALL else "tab:blue" for each in bars]
        axis.barh([each.part for each in bars], means, xerr=[low, high], color=colors, ecolor="black", capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel("elasticity")
        axis.set_title(metric)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A csv file with the keys of all rows as columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def main(given: Sequence[str] | None = None) -> None:
    """Measures, writes the tables and the figure, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the run, as experiments/serve.py takes them")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="on the time of a part (default: %(default)s)")
    parser.add_argument("--parts", default="", help="ops, and host; default: all that the workload calls")
    parser.add_argument("--repeats", type=int, default=8, help="of every run (default: %(default)s)")
    parser.add_argument("--twice", default="", metavar="OP,...", help="ops to measure with a kernel that works twice, too")
    parser.add_argument("--output", type=Path, default=Path("outputs/sensitivity"), help="folder (default: %(default)s)")
    arguments = parser.parse_intermixed_args(given)
    config = compose(arguments.overrides, ROOT / "conf")
    config.validate()
    config.workload.validate()
    factors = _factors(arguments.factors)
    has_device = EXECUTORS[config.executor.kind].has_device
    on_processor = has_device and EXECUTORS[config.executor.kind].load().runs_on(config)[1] == "cpu"
    subject = OnProcessor(config) if on_processor else Rebuilt(config)
    twice = [op for op in arguments.twice.split(",") if op]
    if arguments.parts:
        subject.parts = _known(arguments.parts.split(","), subject.parts, "--parts")
    _known(twice, subject.parts, "--twice")
    freeze_garbage()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG_FILE)
    rows = measure(subject, factors, twice, arguments.repeats, config.seed)
    write_rows(folder / RUNS_FILE, rows)
    total_s = sum(subject.seconds.values())
    shares = {part: seconds / total_s for part, seconds in subject.seconds.items()}
    found = [each for metric in METRICS for each in elasticities(metric, ratios(rows, metric))]
    write_rows(folder / TABLE_FILE, as_rows(found, shares))
    draw(found, f"{config.model.name} on {config.executor.device if not has_device else config.device}", folder / PLOT_FILE)
    print(as_text(found, shares))
    if twice:
        assert isinstance(subject, OnProcessor), "Rebuilt refuses them"
        lines = agreement(rows, subject.factors)
        write_rows(folder / AGREEMENT_FILE, [dict(zip(lines[0], line)) for line in lines[1:]])
        print("\n" + format_table(lines))
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or min(factors) <= 0 or 1.0 in factors or not all(map(math.isfinite, factors)):
        raise ValueError(f"--factors {text}: expected positive numbers other than 1, as in 0.8,1.25")
    return factors


def _known(names: Sequence[str], parts: Sequence[str], option: str) -> list[str]:
    for name in names:
        if name not in parts:
            raise ValueError(f"{option} {name}: this workload has no such part; it has {', '.join(parts)}")
    return list(names)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
