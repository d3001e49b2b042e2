"""What a report says: from a table of runs to words, tables and figures, which ``report_writing`` puts on a page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from .comparison import chance_caveat, compare, environment_caveat, outliers, summarize, usual_metrics
from .compose import saved_commands
from .drawing import Naming
from .environment import START_TIME
from .labels import number_text, quantity
from .plot_kinds import PLOT_KINDS, FigureSpec
from .sweep import is_setting, split_condition, swept_columns, value_text

USUAL_FIGURES = ("quality", "load", "lines", "bars", "latency", "pareto")
_ALIKE = ("load", "lines", "bars")
"""Of the usual figures, those that show the same numbers: one is enough."""
MAX_ROWS, MAX_VALUES, MAX_FAILURES, MAX_COMMANDS = 60, 12, 12, 6
CI = ".ci95"


@dataclass(frozen=True)
class Table:
    """title, header and rows of text, the first ``num_names`` columns names and the others numbers; notes below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_names: int
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure with what is said below it; kind: in PLOT_KINDS."""

    kind: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Report:
    """All that a page says, as text that needs escaping.

    facts        how many runs, of when
    alarms       what a reader must know first
    swept, fixed what differs between the runs, and what does not: key -> values
    failures     runs -> the error that ended them
    ran          op -> impl
    summary      the table of settings in whole, numbers unformatted
    """

    title: str
    questions: Sequence[str]
    facts: str
    alarms: Sequence[str]
    swept: Mapping[str, str]
    fixed: Mapping[str, str]
    tables: Sequence[Table]
    drawings: Sequence[Drawing]
    figure_notes: Sequence[str]
    failures: Mapping[str, str]
    environment: Mapping[str, str]
    ran: Mapping[str, str]
    commands: Sequence[str]
    command_notes: Sequence[str]
    summary: pd.DataFrame


def build_report(
    folder: Path, runs: pd.DataFrame, metrics: Sequence[str] = (), comparison: str = "", figures: Sequence[str] = ()
) -> Report:
    """The report of ``runs``, a table from ``collect(folder)``. What is not given is as the study states it in its runs, or usual.
    Raises ValueError for a metric, a comparison or a kind of figure that there is not, if it is given here; of one that
    a study states the page says so. If all runs failed there are no tables and figures."""
    runs = without_paths(runs)
    worked = runs[runs["status"] == "ok"]
    names, questions = (_stated(runs, column) for column in ("name", "question"))
    tables: list[Table] = []
    drawings: list[Drawing] = []
    notes, summary, alarms = ["No run finished, so there is nothing to draw."], pd.DataFrame(), _alarms(runs)
    if len(worked):
        stated = {name: f"metric.{name}" in worked for name in _stated_list(runs, "metrics")}
        asked = list(metrics) or [name for name, there in stated.items() if there]
        alarms += [f"No run has the metric {name[:80]!r}, which the study states." for name, there in stated.items() if not there]
        shown = asked or usual_metrics(worked)
        columns = [f"metric.{name}" for name in shown]
        summary = summarize(runs, columns)
        tables.append(_summary_table(summary, runs, columns))
        for base in [comparison] if comparison else _stated(runs, "compare"):
            try:
                tables.append(_comparison_table(runs, columns, base))
            except ValueError as error:
                if comparison:
                    raise
                alarms.append(f"What the study states cannot be compared: {error}.")
        for figure in figures:
            FigureSpec.parse(figure)
        drawings, notes = _draw(folder, runs, list(figures) or _stated_list(runs, "figures"), asked)
    commands, command_notes = _commands([folder / run for run in runs["run"]])
    return Report(
        title=", ".join(names) or "runs",
        questions=questions,
        facts=_facts(runs),
        alarms=alarms,
        swept={c: _values_text(runs[c]) for c in swept_columns(runs)},
        fixed={c: value_text(runs[c].dropna().iloc[0]) for c in runs.columns if is_setting(c) and runs[c].nunique() == 1},
        tables=tables,
        drawings=drawings,
        figure_notes=notes,
        failures=_failures(runs),
        environment={
            c.removeprefix("env."): _values_text(runs[c]) for c in runs.columns if c.startswith("env.") and c != START_TIME
        },
        ran={c.removeprefix("plan."): _values_text(runs[c]) for c in runs.columns if re.fullmatch(r"plan\.\w+", c)},
        commands=commands,
        command_notes=command_notes,
        summary=summary,
    )


def without_paths(runs: pd.DataFrame) -> pd.DataFrame:
    """The table without the folders of the machine that it comes from, and without control characters. Values that differ go on
    to differ."""
    cleaned = {}
    for column in runs.columns:
        values = [value for value in runs[column].unique() if isinstance(value, str)]
        texts = [without_path(value) for value in values]
        if column != "error":
            texts = [text if texts.index(text) == i else f"{text} ({i})" for i, text in enumerate(texts)]
        if texts != values:
            cleaned[column] = runs[column].replace(dict(zip(values, texts)))
    return runs.assign(**cleaned)


def without_path(text: str) -> str:
    """Text in which absolute paths are cut to their last part, and control characters are replaced."""
    text = re.sub(r"(?<![\w./<])(?:~|[A-Za-z]:)?[/\\](?![/\\])(?:[^\s,:;'\"()\[\]{}|<>/\\]+[/\\])+", "PATH/", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _stated(runs: pd.DataFrame, column: str) -> list[str]:
    """The texts of a column, each once."""
    return [str(value) for value in runs[column].dropna().unique() if value] if column in runs else []


def _stated_list(runs: pd.DataFrame, column: str) -> list[str]:
    """What the lists of a column hold, each once; a list stands in the table as JSON, and what is no list of texts as itself."""
    items: list[str] = []
    for text in _stated(runs, column):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        items += found if isinstance(found, list) and all(isinstance(item, str) for item in found) else [text]
    return list(dict.fromkeys(items))


def _facts(runs: pd.DataFrame) -> str:
    words = f"{len(runs)} runs, {int((runs['status'] != 'ok').sum())} failed"
    days = sorted({str(day)[:10] for day in runs[START_TIME].dropna()}) if START_TIME in runs else []
    return words + (f"; {days[0]}" if days else "") + (f" to {days[-1]}" if len(days) > 1 else "")


def _alarms(runs: pd.DataFrame) -> list[str]:
    failed = int((runs["status"] != "ok").sum())
    alarms = []
    if failed == len(runs):
        alarms.append(f"All {failed} runs failed: there are no results.")
    elif failed:
        alarms.append(f"{failed} of {len(runs)} runs failed, see below; the table and the figures are of the others.")
    alarms += environment_caveat(runs)
    if any(commit.endswith("+changes") for commit in _stated(runs, "env.commit")):
        alarms.append("Some of the code was changed after its commit.")
    return alarms


def _values_text(values: pd.Series) -> str:
    """All values, or where they are many numbers their range; else how many."""
    found = values.dropna().unique()
    numbers = pd.to_numeric(pd.Series(found), errors="coerce")
    if len(found) > MAX_VALUES and numbers.notna().all():
        return f"{number_text(numbers.min())} to {number_text(numbers.max())} ({len(found)} values)"
    shown = [value_text(value) for value in found[:MAX_VALUES]]
    return ", ".join(shown) + (f", ... ({len(found)} values)" if len(found) > MAX_VALUES else "")


def _summary_table(summary: pd.DataFrame, runs: pd.DataFrame, metrics: Sequence[str]) -> Table:
    naming = Naming.of(runs)
    others = [c for c in summary.columns if c in ("repeats", "outliers")]
    rows = []
    for _, row in summary.head(MAX_ROWS).iterrows():
        cells = [value_text(row[c]) if pd.notna(row[c]) else "-" for c in naming.keys] + [str(int(row[c])) for c in others]
        for metric in metrics:
            scale = quantity(metric).scale
            half = row.get(metric + CI, math.nan) * scale
            cells.append(number_text(row[metric] * scale) + (f" ± {number_text(half, 2)}" if math.isfinite(half) else ""))
        rows.append(cells)
    notes = []
    if any(c.endswith(CI) for c in summary.columns):
        notes.append("Mean over the repeats ± half of its 95 % confidence interval.")
    flagged = outliers(runs, metrics)
    if num_outliers := int((flagged != "").sum()):
        notes.append(f"{num_outliers} runs lie far from the other repeats of their setting; they count all the same.")
    if naming.note:
        notes.append(f"Not shown: {naming.note}.")
    if len(summary) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(summary)} settings; all are in the csv file beside this page.")
    header = [*naming.keys.values(), *others, *(quantity(metric).label for metric in metrics)]
    return Table("Results", header, rows, len(naming.keys), notes)


def _comparison_table(runs: pd.DataFrame, metrics: Sequence[str], comparison: str) -> Table:
    found = compare(runs, metrics, *split_condition(comparison, "compare"))
    naming = Naming.of(runs)
    rows = []
    for _, row in found.head(MAX_ROWS).iterrows():
        label, scale = quantity(row["metric"])
        sign, factor = ("×", 1.0) if row["scale"] == "ratio" else ("", scale)
        estimate, low, high = (number_text(row[name] * factor) for name in ("estimate", "low", "high"))
        cells = [value_text(row[c]) if pd.notna(row[c]) else "-" for c in naming.keys]
        interval = f" ({low} to {high})" if row["interval"] != "none" else ""
        cells += [label, str(row["pairs"]), f"{sign}{estimate}{interval}", number_text(row["effect_size"]), row["verdict"]]
        rows.append(cells)
    notes = [
        "× a ratio to the base, else a difference from it; in brackets its 95 % confidence interval over pairs of equal repeats.",
        *chance_caveat(found),
    ]
    if len(found) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(found)} rows; kernelswap collect --compare {comparison} prints all.")
    header = [*naming.keys.values(), "metric", "pairs", "change", "effect size", "verdict"]
    return Table(f"Compared with {comparison}", header, rows, len(naming.keys) + 1, notes)


def _draw(folder: Path, runs: pd.DataFrame, asked: Sequence[str], metrics: Sequence[str]) -> tuple[list[Drawing], list[str]]:
    """The figures that were asked for, with a note for each that cannot be drawn; or of the usual ones those that can. Where the
    study names ``metrics``, the usual ones show the first of these."""
    drawings: list[Drawing] = []
    notes = []
    for text in asked or USUAL_FIGURES:
        if not asked and text in _ALIKE and any(drawing.kind in _ALIKE for drawing in drawings):
            continue
        named = not asked and metrics and text in ("lines", "bars")
        try:
            spec = FigureSpec.parse(f"{text} y={','.join(metrics[:3])}" if named else text)
            figure = spec.draw(folder, runs)
        except ValueError as error:
            notes.append(f"{text[:80]}: {error}")
            continue
        words = [f"{key}={value}" for key, value in spec.options.items()] + list(spec.where)
        shows = PLOT_KINDS[spec.kind].shows
        caption = shows[0].upper() + shows[1:] + (f" ({', '.join(words)})" if words else "")
        drawings.append(Drawing(spec.kind, caption, figure))
    if not asked:
        notes = [] if drawings else [f"None of the usual figures fits these runs: {notes[0]}"]
    return drawings, notes


def _failures(runs: pd.DataFrame) -> dict[str, str]:
    """Which runs -> the error that ended them all, the most frequent first."""
    failed = runs[runs["status"] != "ok"]
    by_error = failed.groupby(failed["error"].fillna("no error was written").astype(str), sort=False)["run"].agg(list)
    by_error = by_error.sort_values(key=lambda found: found.map(len), ascending=False, kind="stable")
    found = {}
    for error, names in by_error.head(MAX_FAILURES).items():
        more = f" and {len(names) - MAX_VALUES} more" if len(names) > MAX_VALUES else ""
        found[f"run{'s' if len(names) > 1 else ''} {', '.join(names[:MAX_VALUES])}{more}"] = str(error)
    if len(by_error) > MAX_FAILURES:
        found["others"] = f"{len(by_error) - MAX_FAILURES} further errors: kernelswap collect lists them"
    return found


def _commands(folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    commands = [without_path(command) for command in saved_commands(folders)]
    if not commands:
        return [], ["The command was not kept with these runs: they lack the files that Hydra wrote beside them."]
    notes = [f"The first {MAX_COMMANDS} of {len(commands)} commands."] if len(commands) > MAX_COMMANDS else []
    if any("PATH/" in command for command in commands):
        notes.append("PATH stands for a folder of the machine that this ran on.")
    return commands[:MAX_COMMANDS], notes
