"""The figures that can be drawn from a table of runs: name -> what it shows, what draws it, and what that needs. Reading the table
imports neither matplotlib nor pandas."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import collect_requests
from .sweep import select, split_condition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METRICS_HELP = "metrics, a panel each: goodput_per_s,ttft_p99_s; /gpu after one divides it by the devices (default: TTFT and TPOT)"


@dataclass(frozen=True)
class PlotKind:
    """One kind of figure.

    shows            what, in a line
    function         "module:name" in this package; takes the table of runs
    needs_requests   takes the table of requests before it
    options          names of the further arguments that it takes, all of them text -> what they say
    required         those of the options that have no default
    of_rows          takes no runs, but a csv file of rows of its own
    """

    shows: str
    function: str
    needs_requests: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    of_rows: bool = False

    def draw(self, folder: str | Path, runs: pd.DataFrame, options: Mapping[str, str]) -> Figure:
        """The figure of ``runs``, a table (or a part of one) from ``collect(folder)``. ``options``: of those that the kind names.
        Raises ValueError where the runs cannot be drawn."""
        tables = (collect_requests(folder, runs), runs) if self.needs_requests else (runs,)
        return self._function()(*tables, **options)

    def draw_rows(self, path: Path) -> Figure:
        """The figure of the rows of a csv file. Raises ValueError where it does not hold them."""
        import pandas as pd

        if not path.is_file():
            raise ValueError(f"{path} is no file: this figure is drawn from a csv file of rows")
        return self._function()(pd.read_csv(path))

    def _function(self) -> Any:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


@dataclass(frozen=True)
class FigureSpec:
    """One figure to draw.

    kind     a name in PLOT_KINDS
    options  of those that it takes
    where    COLUMN=VALUE: only the runs with this value, of all of them
    """

    kind: str
    options: Mapping[str, str] = field(default_factory=dict)
    where: Sequence[str] = ()

    @classmethod
    def parse(cls, text: str) -> FigureSpec:
        """From "KIND OPTION=VALUE ... where=COLUMN=VALUE ...". Raises ValueError naming what there is."""
        name, *words = text.split() or [""]
        if name not in PLOT_KINDS:
            raise ValueError(f"figure {text!r}: there is no kind {name!r}; there are {', '.join(PLOT_KINDS)}")
        if PLOT_KINDS[name].of_rows:
            raise ValueError(f"figure {text!r}: {name} is drawn from a csv file (kernelswap plot {name} FILE), not from runs")
        pairs = [word.partition("=")[::2] for word in words]
        kind, options = PLOT_KINDS[name], {key: value for key, value in pairs if key != "where"}
        if unknown := [key for key in options if key not in kind.options]:
            known = ", ".join([*kind.options, "where"])
            raise ValueError(f"figure {text!r}: {name} takes no option {unknown[0]!r}; it takes {known} (as OPTION=VALUE)")
        if missing := [key for key in kind.required if key not in options]:
            raise ValueError(f"figure {text!r}: {name} needs {', '.join(f'{key}=' for key in missing)}")
        return cls(name, options, [value for key, value in pairs if key == "where"])

    def draw(self, folder: str | Path, runs: pd.DataFrame) -> Figure:
        """The figure of ``runs``, a table from ``collect(folder)``. Raises ValueError where the runs cannot be drawn."""
        for condition in self.where:
            runs = select(runs, *split_condition(condition, "where"))
        return PLOT_KINDS[self.kind].draw(folder, runs, self.options)


PLOT_KINDS = {
    "latency": PlotKind("distributions of TTFT and TPOT, a line per setting", "plots:latency", needs_requests=True),
    "load": PlotKind(
        "TTFT and TPOT against the offered load",
        "plots:load",
        options={"x": "the swept column on the horizontal axis (default: workload.rate)"},
    ),
    "lines": PlotKind(
        "metrics over a swept number, a line per other setting, with confidence intervals",
        "sweep_plots:lines",
        options={"x": "the swept column (default: the one with most numbers)", "y": METRICS_HELP},
    ),
    "bars": PlotKind("metrics of every setting, with confidence intervals", "sweep_plots:bars", options={"y": METRICS_HELP}),
    "heatmap": PlotKind(
        "a metric over two swept columns",
        "sweep_plots:heatmap",
        options={"x": "a swept column", "y": "another", "z": "the metric (default: tpot_p50_s)"},
        required=("x", "y"),
    ),
    "timeline": PlotKind("requests that wait and that answer, over time", "plots:timeline", needs_requests=True),
    "predictions": PlotKind(
        "simulated over measured times of operators (a csv file: op, measured_us, predicted_us)",
        "kernel_plots:predictions",
        of_rows=True,
    ),
    "elasticities": PlotKind(
        "how much each operator's time weighs in a metric (a csv file: metric, part, elasticity, low, high)",
        "kernel_plots:elasticities",
        of_rows=True,
    ),
    "pareto": PlotKind("tokens/s/user over tokens/s, with the frontier", "plots:pareto"),
    "quality": PlotKind(
        "KL divergence over tokens/s and over the bytes of the weights",
        "plots:quality",
        options={"x": "a metric in place of output_tokens_per_s, as goodput_per_s"},
    ),
}
