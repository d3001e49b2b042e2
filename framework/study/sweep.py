"""What was swept in a table of runs, and parts of it.

A table may join runs whose columns differ: a config key or an op came later, or another system served. A cell that a run does not
have is no value: it neither makes an axis nor can be selected. A key that is set to nothing has the value ``null``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

NULL = "null"
"""What the table holds where a config key is None, as Hydra writes it; an empty cell says that the run has no such key."""
AUTO = "auto"
"""In the column ``repeats``: their number was decided while they ran."""
_LABELS = ("run", "status", "error", "name", "repeats", "outlier")
_STATED = ("question", "metrics", "compare", "figures")
_FOUND = ("metric.", "plan.", "env.")


def is_setting(column: str) -> bool:
    """Whether a column says what was asked for: config and choices, not what was found."""
    return column not in (*_LABELS, *_STATED) and not column.startswith(_FOUND)


def is_repeat(column: str) -> bool:
    """Whether a swept column only repeats a run: the repeat and seeds do, the length of a trace (``workload.repeat``) does not."""
    return column == "repeat" or column.split(".")[-1] == "seed"


def swept_columns(runs: pd.DataFrame) -> list[str]:
    """Config and choice columns of which the runs have two or more values: the axes of a sweep."""
    return [c for c in runs.columns if is_setting(c) and runs[c].nunique() > 1]


def setting_columns(runs: pd.DataFrame) -> list[str]:
    """The swept columns that make a setting: all but the repeat and the seeds, which repeat one."""
    return [c for c in swept_columns(runs) if not is_repeat(c)]


def telling_columns(runs: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The few of ``columns`` that tell apart what all of them do: each next one splits the runs most, the first among equals.
    Where a model was swept this is its name, and not the twenty numbers that follow from it."""
    chosen: list[str] = []

    def num_parts(by: Sequence[str]) -> int:
        return runs.groupby(list(by), dropna=False).ngroups if by else 1

    while num_parts(chosen) < num_parts(columns):
        chosen.append(max((c for c in columns if c not in chosen), key=lambda c: num_parts([*chosen, c])))
    return chosen


def differences(runs: pd.DataFrame, max_columns: int = 4, max_values: int = 5) -> dict[str, list[str]]:
    """What tells the runs apart, for a person to choose from: the study's name and the telling columns, with some of the values."""
    columns = [*(["name"] if "name" in runs and runs["name"].nunique() > 1 else []), *setting_columns(runs)]
    shown = telling_columns(runs, columns)[:max_columns]
    return {c: [value_text(value) for value in runs[c].dropna().unique()[:max_values]] for c in shown}


def differences_text(runs: pd.DataFrame) -> str:
    """``differences`` as words: "workload.rate (2, 4), choice.sample (torch, triton) and 3 more"."""
    found = differences(runs)
    if not found:
        return "nothing"
    shown = [f"{c} ({', '.join(values)}{', ...' if runs[c].nunique() > len(values) else ''})" for c, values in found.items()]
    num_more = len([c for c in setting_columns(runs) if c not in found])
    return ", ".join(shown) + (f" and {num_more} more" if num_more else "")


def split_condition(text: str, key: str) -> tuple[str, str]:
    """(column, value) of COLUMN=VALUE. Raises ValueError that names ``key``, under which it was given."""
    column, _, value = text.partition("=")
    if not (column and value):
        raise ValueError(f"{key}={text} names no value: give COLUMN=VALUE, such as scheduler.policy=fcfs")
    return column, value


def select(runs: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The runs whose ``column`` is ``value``, compared as numbers where it holds numbers. Raises ValueError if there is none."""
    import pandas as pd

    if column not in runs:
        raise ValueError(f"the table has no column {column!r}; the runs differ in {differences_text(runs)}")
    numbers = pd.to_numeric(runs[column], errors="coerce")
    wanted = pd.to_numeric(value, errors="coerce")
    found = runs[runs[column].notna() & ((runs[column].map(value_text) == value) | (numbers == wanted))]
    if found.empty:
        raise ValueError(
            f"no run has {column}={value}; found {', '.join(map(value_text, runs[column].dropna().unique())) or 'none'}"
        )
    return found


def value_text(value: object) -> str:
    """A value as one writes it in an override or in ``--where``."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
