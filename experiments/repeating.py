"""What the sweeper decides by: whether a sweep is the same, can be repeated, and was repeated often enough."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain, count, groupby
from pathlib import Path

import numpy as np

from experiments.sweep_folder import read_row
from framework.study.compose import SWEEP_KEYS, StudyConfig
from framework.study.statistics import Changes, confidence_halfwidth
from framework.study.sweep import is_repeat

Overrides = list[str]


def digest(configs: Sequence[StudyConfig]) -> str:
    """What says that a sweep is the same: its configs, and the content of the plugins' files."""
    files = {plugin: Path(plugin) for config in configs for plugin in config.plugins}
    contents = {name: path.read_text(encoding="utf-8") for name, path in sorted(files.items()) if path.is_file()}
    values = [{key: value for key, value in asdict(config).items() if key != "resume"} for config in configs]
    return hashlib.sha256(json.dumps([values, contents], sort_keys=True).encode()).hexdigest()


def check_sweep_keys(configs: Sequence[StudyConfig], settings: Sequence[Overrides]) -> None:
    """Raises ValueError if the sweep cannot be repeated as it is asked."""
    config = configs[0]
    for key in SWEEP_KEYS:
        if len({getattr(other, key) for other in configs}) > 1:
            raise ValueError(f"{key} is a key of the whole sweep and was given several values: give one")
    config.validate_sweep()
    if config.repeats == 1:
        return
    given: dict[str, set[str]] = defaultdict(set)
    for override in chain.from_iterable(settings):
        key, _, value = override.lstrip("+").partition("=")
        given[key].add(value)
    if "repeat" in given:
        raise ValueError(f"repeat was given beside repeats={config.repeats}, which runs repeat=0, 1, ...: give one of them")
    for key, values in given.items():
        if is_repeat(key) and len(values) > 1:
            raise ValueError(
                f"{key} is swept beside repeats={config.repeats}, whose repeats shift the seeds: runs would meet the same seed "
                f"twice. Give one of them ({key}=0 leaves only the repeats)"
            )


def consecutive(jobs: Sequence[tuple[int, Overrides]], most: int | None) -> Iterator[list[tuple[int, Overrides]]]:
    """Batches of jobs with successive numbers, which is how a launcher numbers them."""
    counter = count()
    for _, run in groupby(jobs, key=lambda job: job[0] - next(counter)):
        batch = list(run)
        size = most or len(batch)
        yield from (batch[i : i + size] for i in range(0, len(batch), size))


def read_values(folder: Path, metric: str, num_repeats: int, num_settings: int) -> np.ndarray:
    """[repeats, settings]: the metric of every job, NaN where it failed or has none."""
    rows = [read_row(folder / str(job)) or {} for job in range(num_repeats * num_settings)]
    values = [float(row.get(f"metric.{metric}", math.nan)) if row.get("status") == "ok" else math.nan for row in rows]
    return np.array(values).reshape(num_repeats, num_settings)


def halfwidths(values: np.ndarray, settings: Sequence[Overrides]) -> list[float]:
    """Half the width of the 95 % interval of every ratio to the first value of the first swept key, as a fraction; of a lone
    setting that of its own mean. Comparisons without any pair are left out: who fails every time is not waited for."""
    if len(settings) == 1:
        found = [Changes.of(values[:, 0], np.ones(len(values)))]
    else:
        num_bases = len(settings) // _num_values_of_first_key(settings)
        found = [Changes.of(values[:, i], values[:, i % num_bases]) for i in range(num_bases, len(settings))]
    return [_relative_halfwidth(changes) for changes in found if len(changes.values)]


def _num_values_of_first_key(settings: Sequence[Overrides]) -> int:
    """Settings are in the order of itertools.product: the first swept key is the outermost loop."""
    numbers = (len(set(values)) for values in zip(*settings))
    return next(number for number in numbers if number > 1)


def _relative_halfwidth(changes: Changes) -> float:
    half = confidence_halfwidth(changes.values, sequential=True)
    if math.isnan(half):
        return math.inf
    return half if changes.is_ratio else changes.relative(half)


def check_metric(folder: Path, metric: str) -> None:
    """Raises ValueError if no run that worked has the metric, or none worked: repeating would be in vain."""
    rows = [row for path in folder.glob("*/run.json") if (row := read_row(path.parent))]
    worked = [row for row in rows if row["status"] == "ok"]
    if worked and not any(f"metric.{metric}" in row for row in worked):
        there = ", ".join(sorted(key.removeprefix("metric.") for key in worked[0] if key.startswith("metric.")))
        raise ValueError(f"primary_metric={metric!r} was not observed; there are {there}")
    raise_if_all_failed(folder)


def raise_if_all_failed(folder: Path) -> None:
    """Raises ValueError with the first error if no run worked."""
    rows = [row for path in sorted(folder.glob("*/run.json")) if (row := read_row(path.parent))]
    if rows and all(row["status"] != "ok" for row in rows):
        raise ValueError(f"all {len(rows)} runs in {folder} failed; the first: {rows[0]['error']}")
