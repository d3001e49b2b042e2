"""Files of a run, and the table of many runs.

A run's folder holds ``run.json``, one flat dictionary (config keys with dots, ``choice.<op>``, ``plan.<op>``, ``metric.<name>``,
``env.<name>``, ``status``, ``error``), and ``requests.csv``, one row per request. A table of runs is all ``run.json`` below a
folder; it can be built at any time, while a sweep still runs too.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig
from .metrics import e2e_s, tpot_s, ttft_s
from .records import RequestRecord
from .sweep import NULL, is_setting
from .workload import WorkloadConfig

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE, REQUESTS_FILE, TABLE_FILE = "run.json", "requests.csv", "table.csv"
REQUEST_COLUMNS = (
    "request_id",
    "user",
    "status",
    "arrival_s",
    "first_token_s",
    "last_token_s",
    "num_prompt_tokens",
    "num_output_tokens",
    "num_images",
    "num_image_tokens",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "finish_reason",
    "error",
    "num_encoder_tokens",
)
_TEXTS = ("request_id", "status", "finish_reason", "error")
"""Of them, those that hold no numbers."""
_LATER_COLUMNS = ("num_encoder_tokens", "num_images", "num_image_tokens")
"""Of requests, that older files do not have."""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one with dotted keys. Lists become text, so that every cell of the table is a scalar."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(item) if isinstance(item, list | tuple) else item
    return flat


def config_columns(config: EngineConfig) -> dict[str, Any]:
    """The config of a run as columns; what was asked of the kernels is ``choice.<op>``, and ``choice.default`` of
    the ops without such a column. A trace is told by its name and content, wherever the file lies."""
    fields = asdict(config)
    kernels = fields.pop("kernels")
    if isinstance(workload := getattr(config, "workload", None), WorkloadConfig):
        fields["workload"]["path"] = workload.trace_name()
    return {**flatten(fields), **{f"choice.{op}": choice for op, choice in kernels.items()}}


def plan_columns(report: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ran: ``plan.<op>`` is the impl; beside it ``.chosen`` (name, default or auto, and what speaks
    against trusting it), ``.origin``, ``.version``, ``.calls``, as far as they are known."""
    columns: dict[str, Any] = {}
    for op, entry in report.items():
        columns[f"plan.{op}"] = entry["impl"]
        columns.update({f"plan.{op}.{key}": entry[key] for key in ("chosen", "origin", "version", "calls") if key in entry})
    return columns


def write_run(folder: Path, row: Mapping[str, Any]) -> None:
    """Writes ``run.json`` in one move, so that a reader never sees half of it. Infinite numbers are written as text."""
    row = {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / (RUN_FILE + ".part")
    draft.write_text(json.dumps(row, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(folder / RUN_FILE)


def write_requests(folder: Path, requests: Iterable[RequestRecord]) -> None:
    """Writes ``requests.csv``; a cell is empty where nothing was observed."""
    with (folder / REQUESTS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, REQUEST_COLUMNS)
        writer.writeheader()
        for r in requests:
            times = r.token_times_s
            row = {
                "request_id": r.request_id,
                "user": r.user,
                "status": r.status,
                "arrival_s": r.arrival_s,
                "first_token_s": times[0] if len(times) else None,
                "last_token_s": times[-1] if len(times) else None,
                "num_prompt_tokens": r.num_prompt_tokens,
                "num_output_tokens": len(times),
                "num_images": r.num_images,
                "num_image_tokens": r.num_image_tokens,
                "ttft_s": ttft_s(r),
                "tpot_s": tpot_s(r),
                "e2e_s": e2e_s(r),
                "finish_reason": r.finish_reason,
                "error": r.error,
                "num_encoder_tokens": r.num_encoder_tokens or None,
            }
            writer.writerow({k: _cell(v) for k, v in row.items()})


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """A csv file with ``columns``, or with the keys of all rows; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else f"{value:.9g}"
    return value


def common_folder(folders: Sequence[str | Path]) -> Path:
    """The folder itself (of a table: the one that it lies in), or the deepest that holds all of several."""
    if len(folders) == 1:
        return Path(folders[0]).parent if Path(folders[0]).is_file() else Path(folders[0])
    return Path(os.path.commonpath([Path(folder).resolve() for folder in folders]))


def collect(*folders: str | Path) -> pd.DataFrame:
    """The table of all runs below the folders, failed ones too, in the order of their paths (numbers by value). The column
    ``run`` is a run's path relative to ``common_folder``; an empty cell says that the run has no such key. One file alone is a
    table that ``kernelswap collect`` wrote. Raises ValueError if there is no run in one of them."""
    import pandas as pd

    if len(folders) == 1 and Path(folders[0]).is_file():
        return _completed(_read_table(Path(folders[0])))
    root, files = common_folder(folders), []
    for folder in folders:
        found = list(Path(folder).rglob(RUN_FILE))
        if not found:
            raise ValueError(f"{str(folder)!r} holds no {RUN_FILE}: expected the output folder of a run or of a sweep, or a table")
        files += found if len(folders) == 1 else [path.resolve() for path in found]
    files = sorted(set(files), key=lambda path: _natural(path.relative_to(root)))
    return _completed(pd.DataFrame([{"run": path.parent.relative_to(root).as_posix(), **_read_run(path)} for path in files]))


def _completed(runs: pd.DataFrame) -> pd.DataFrame:
    """With what readers rely on, whoever wrote the rows: metrics are numbers, and there is a column of errors."""
    import pandas as pd

    for column in runs.columns[runs.columns.str.startswith("metric.")]:
        runs[column] = pd.to_numeric(runs[column], errors="coerce")  # infinite ones were written as text
    return runs if "error" in runs else runs.assign(error="no error was written")


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        runs = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"run": str}, low_memory=False)
        runs[["run", "status"]]  # whatever else is in there
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no table of runs, as kernelswap collect writes it: {error}") from error
    if runs.empty:
        raise ValueError(f"{path} is a table without a run")
    return runs


def _read_run(path: Path) -> dict[str, Any]:
    """A row, in which a config key that is set to nothing differs from one that is absent. A file that holds none is a failed run:
    it must not keep the others from being read."""
    try:
        row = flatten(json.loads(path.read_text(encoding="utf-8")))
        row["status"]  # whatever else a version writes
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        return {"status": "failed", "error": f"{path.name} holds no row: {type(error).__name__}: {error}"}
    return {key: NULL if value is None and is_setting(key) else value for key, value in row.items()}


def collect_requests(folder: str | Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The requests of all ``runs`` (a table from ``collect``, ``folder`` the common one of its folders) that finished in one table;
    the column ``run`` says whose they are. Raises ValueError if there are none, or a file does not hold them."""
    import pandas as pd

    tables = []
    for run in runs.loc[runs["status"] == "ok", "run"]:
        path = Path(folder) / run / REQUESTS_FILE
        if path.is_file():
            try:
                found = pd.read_csv(path, usecols=lambda name: name in REQUEST_COLUMNS, low_memory=False)
                found[[name for name in REQUEST_COLUMNS if name not in _LATER_COLUMNS]]  # whatever else a version writes
                numbers = found.columns.difference(list(_TEXTS), sort=False)
                found[numbers] = found[numbers].apply(pd.to_numeric)
                tables.append(found.reindex(columns=REQUEST_COLUMNS).assign(run=run))
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path} does not hold the requests of a run: {error}") from error
    if not tables:
        raise ValueError(f"no finished run below {str(folder)!r} has a {REQUESTS_FILE}")
    return pd.concat(tables, ignore_index=True)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned text; the first row is the header, the first column is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.parts]
