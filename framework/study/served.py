"""What a serving run leaves behind, whatever served."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .compose import SWEEP_KEYS, ServeConfig, StudyConfig
from .environment import START_TIME, environment, utc_now
from .metrics import PERCENTILES, compute_metrics
from .probed import Probed
from .records import RunRecord
from .results import REQUESTS_FILE, RUN_FILE, collect, collect_requests, config_columns, plan_columns, write_requests, write_run

PLOT_FILE = "latency.png"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Served:
    """A run that worked.

    record   what came when
    plan     which kernel of ours ran per op; empty for another system
    system   what served: its version and what it settled by itself; for another system how it served
    further  metrics beside those of the record: what the start cost, where the steps' time went, what a client saw
    load     what else the machine did while the workload ran
    probed   what else was asked for, to be written into the run's folder
    is_here  whether it ran on a device of this machine
    """

    record: RunRecord
    plan: dict[str, dict[str, Any]]
    system: dict[str, str]
    further: dict[str, float]
    load: dict[str, float]
    probed: list[Probed] = field(default_factory=list)
    is_here: bool = True

    def checked(self, name: str) -> Served:
        """Itself. Raises ValueError if the system of that name served nothing at all."""
        requests = self.record.requests
        if all(request.error for request in requests):
            raise ValueError(f"{name} refused every request; the first because: {requests[0].error}")
        return self

    def metrics(self, config: ServeConfig, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
        """By the objectives of the config."""
        return {**compute_metrics(self.record, config.slo, percentiles), **self.further}

    def write(self, folder: Path, config: ServeConfig, row: Mapping[str, Any]) -> list[str]:
        """Writes the files of the run; returns their names. ``row``: its first columns."""
        folder.mkdir(parents=True, exist_ok=True)
        write_requests(folder, self.record.requests)
        system = {"plan.system": config.system} | {f"plan.system.{name}": value for name, value in self.system.items()}
        metrics = {f"metric.{name}": value for name, value in self.metrics(config).items()}
        found = system | plan_columns(self.plan) | metrics | environment(config if self.is_here else None) | self.load
        write_run(folder, {**row, **found, "status": "ok", "error": None})
        _plot(folder)
        return [RUN_FILE, REQUESTS_FILE, PLOT_FILE, *(name for one in self.probed for name in one.write(folder))]


def _plot(folder: Path) -> None:
    from . import plots

    runs = collect(folder)
    plots.latency(collect_requests(folder, runs)).savefig(folder / PLOT_FILE, dpi=150)


def first_columns(config: StudyConfig) -> dict[str, Any]:
    """The columns that a row has from the start. Of the keys of its sweep only how often it was repeated: with auto, intervals are
    computed in another way."""
    columns = {key: value for key, value in config_columns(config).items() if key not in SWEEP_KEYS}
    return {**columns, "repeats": config.repeats, START_TIME: utc_now()}


def attempt(folder: Path, row: Mapping[str, Any], measure: Callable[[], Found]) -> Found | None:
    """What ``measure`` finds; None if it failed: then the folder holds ``row`` with the error."""
    try:
        return measure()
    except Exception as error:
        print(f"error: {error}" if isinstance(error, ValueError) else traceback.format_exc(), file=sys.stderr)
        write_run(folder, {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"})
        return None
