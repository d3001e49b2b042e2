"""Which kernel is worth writing: how TTFT, TPOT and goodput of a workload move if one op's time is scaled.

    python experiments/sensitivity.py workload=closed_loop                              tiny, on this machine's processor
    python experiments/sensitivity.py workload=closed_loop --twice linear,silu_and_mul  ... held to kernels that work twice
    python experiments/sensitivity.py model=llama-3-8b model.load_format=dummy executor=simulated workload=random
                                                                                        a device that is not here, exactly

On a simulated device an op's time is a factor. On a processor each of its calls is followed by a busy wait, as long as
(factor - 1) times what that call took; a faster op is all others, and the rest of each step (``host``), slower by 1 / factor while
requests come so much later, and all times rescaled; it is compared with a run where the op is slower, too, since waits themselves
change caches and clocks. On a GPU the waits are spin kernels of a fixed length, (factor - 1) times the
op's mean time, and factors below 1 are not available. Runs take turns in a new order in every repeat, and every op has a run
without change of its own beside its factors; repeats differ in the workload's seed.

A processor shared with others changes its speed all the time. No delay changes how long the calls themselves take, so that what
they took in a run tells how fast the machine was then: a metric is divided by that (TTFT by the calls of steps with prompts,
TPOT by those of steps without). runs.csv has metrics as they came, and beside them the seconds that they are divided by.

Overrides are those of experiments/serve.py. The folder gets elasticities.csv, runs.csv, sensitivity.png and config.json; what it
holds of the same config already is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.build import build_engine, freeze_garbage
from framework.engine.engine import Engine
from framework.executor.kinds import EXECUTORS
from framework.study.compose import CONFIG_FILE, ServeConfig, compose, load_config, save_config
from framework.study.driver import run_workload
from framework.study.metrics import compute_metrics
from framework.study.records import RunRecord
from framework.study.results import format_table
from framework.study.sensitivity import ALL, ALL_OPS, HOST, METRICS, Elasticity, as_rows, as_text, elasticities
from framework.study.statistics import mean_interval
from framework.study.workload import WorkloadRequest, build_workload

ROOT = Path(__file__).resolve().parents[1]
PART, OTHERS = "{}.part_s", "{}.others_s"
"""Of a run: seconds of the part's calls in the steps that a metric is about, and those of all others."""
FACTORS = (0.5, 0.8, 1.25, 2.0)
TWICE = "twice"
TABLE_FILE, RUNS_FILE, AGREEMENT_FILE, PLOT_FILE = "elasticities.csv", "runs.csv", "agreement.csv", "sensitivity.png"


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
                plugin = str(Path(__file__).with_name("twice.py"))
                kernels = {**config.kernels, setting.part: setting.impl}
                config = replace(config, kernels=kernels, plugins=[*config.plugins, plugin])
            self._engines[key] = build_engine(config.engine())
        if (key, seed) not in self._met:
            self._met.add((key, seed))
            self._engines[key].executor.probes.scale = {}  # type: ignore[attr-defined]
            _serve(self._engines[key], self._config, seed)
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


def measure(
    subject: Rebuilt | OnProcessor, factors: Sequence[float], twice: Sequence[str], repeats: Sequence[int], seed: int
) -> Iterator[list[dict[str, Any]]]:
    """By repeat, rows (part, factor, impl, repeat, metrics): of each part in turn its factors and, among them, a run without
    change."""
    with tqdm(total=len(repeats) * len(subject.parts), unit="part", disable=None) as bar:
        for repeat in repeats:
            rows, order = [], random.Random(seed + repeat)
            for part in order.sample(subject.parts, len(subject.parts)):
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


def ratios(rows: Sequence[Mapping[str, Any]], metric: str, impl: str = "") -> dict[tuple[str, float], list[float]]:
    """(part, factor) -> the metric over that of the run without change beside it, by repeat, both at the same speed of the machine.
    Raises ValueError for a metric that was not observed in every run, or was 0."""

    def value(row: Mapping[str, Any]) -> float:
        if row.get(metric) in (None, 0.0) or math.isnan(row[metric]):
            raise ValueError(f"{metric} of {row['part']} x {row['factor']:g} is {row.get(metric)}: set other objectives (slo.*)")
        name = metric.removesuffix(PART.format(""))
        speed = row[OTHERS.format(name)] + (0.0 if impl else row[PART.format(name)]) if row.get(OTHERS.format(name)) else 1.0
        return row[metric] * speed if metric == "goodput_per_s" else row[metric] / speed

    bases = {(row["part"], row["repeat"], row["factor"]): value(row) for row in rows if row["is_base"]}
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        if not row["is_base"] and row["impl"] == impl:
            same, unchanged = ((row["part"], row["repeat"], factor) for factor in (row["factor"], 1.0))
            found[row["part"], row["factor"]].append(value(row) / bases.get(same, bases[unchanged]))
    return dict(found)


def agreement(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each kernel that works twice: by how much longer its calls really took, what a metric did, and what it did under a delay
    of as much (from no delay to that of factor 2 a metric is linear in an op's time); the interval of the ratio of both is to hold
    1."""
    lines = [["metric", "op", "its calls took", "metric", "with the delay", "ratio (95 %)", "agree"]]
    for metric in METRICS[:2]:
        true, delayed = ratios(rows, metric, TWICE), ratios(rows, metric)
        for (part, factor), values in true.items():
            key = PART.format(metric)
            own = [row for row in rows if row["part"] == part and row["factor"] in (1.0, factor)]
            if not all(row[key] for row in own):  # the metric is about steps that do not call it
                continue
            longer = statistics.median(ratios(own, key, TWICE)[part, factor])
            foretold = 1 + (np.array(delayed[part, factor]) - 1) * (longer - 1) / (factor - 1)
            interval = mean_interval(np.log(values) - np.log(foretold))
            means = [f"{np.exp(np.log(found).mean()):.3f}" for found in (values, foretold)]
            both = f"{math.exp(interval.low):.3f} to {math.exp(interval.high):.3f}"
            lines.append([metric, part, f"x {longer:.2f}", *means, both, "no" if interval.excludes(0.0) else "yes"])
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
        colors = ["tab:gray" if each.part in (ALL, ALL_OPS) else "tab:blue" for each in bars]
        axis.barh([each.part for each in bars], means, xerr=[low, high], color=colors, ecolor="black", capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel("elasticity")
        axis.set_title(metric)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def read_rows(folder: Path, config: ServeConfig) -> list[dict[str, Any]]:
    """What was measured before, of the same config."""
    if not (folder / RUNS_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        return []
    if load_config(folder / CONFIG_FILE, ServeConfig) != config:
        return []
    with (folder / RUNS_FILE).open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    kinds: dict[str, Any] = {"part": str, "impl": str, "repeat": int, "is_base": "True".__eq__}
    return [{key: kinds[key](value) if key in kinds else float(value or "nan") for key, value in row.items()} for row in rows]


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
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS", help="begin no repeat after so long")
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
    rows = read_rows(folder, config)
    save_config(config, folder / CONFIG_FILE)
    start_s = time.perf_counter()
    left = [repeat for repeat in range(arguments.repeats) if repeat not in {row["repeat"] for row in rows}]
    for found_rows in measure(subject, factors, twice, left, config.seed):
        rows += found_rows
        write_rows(folder / RUNS_FILE, rows)
        if time.perf_counter() - start_s > arguments.budget:
            break
    of_calls = shares(rows)
    found = [each for metric in METRICS for each in elasticities(metric, ratios(rows, metric))]
    write_rows(folder / TABLE_FILE, as_rows(found, of_calls))
    draw(found, f"{config.model.name} on {config.executor.device if not has_device else config.device}", folder / PLOT_FILE)
    print(as_text(found, of_calls))
    if twice:
        assert isinstance(subject, OnProcessor), "Rebuilt refuses them"
        lines = agreement(rows)
        write_rows(folder / AGREEMENT_FILE, [dict(zip(lines[0], line)) for line in lines[1:]])
        print("\n" + format_table(lines))
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def shares(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """(metric, op) -> its share of the time of all calls in the steps that the metric is about, where nothing is changed."""
    part_s: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        if row["is_base"] and row["factor"] == 1.0 and row["part"] != HOST:
            for metric in METRICS:
                part_s[metric, row["part"]] += row[PART.format(metric)]
    totals = {metric: sum(s for (other, _), s in part_s.items() if other == metric) for metric in METRICS}
    return {(metric, part): s / totals[metric] for (metric, part), s in part_s.items()}


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
