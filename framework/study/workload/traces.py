"""Recorded workloads: readers of four public formats."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens that one entry of Mooncake's ``hash_ids`` stands for."""


@dataclass(frozen=True)
class TraceEntry:
    """One recorded request; None where the format says nothing.

    time_s      seconds since the trace's first request
    block_ids   names of the prompt's blocks of MOONCAKE_BLOCK_TOKENS tokens: equal names, equal tokens
    completion      the recorded completion, whose length tells how long ours may be
    """

    time_s: float | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    block_ids: tuple[int, ...] | None = None
    prompt: str | None = None
    completion: str | None = None


def read_trace(path: str | Path, format: str = "auto", max_entries: int | None = None) -> list[TraceEntry]:
    """The first ``max_entries`` usable entries of a trace.

    azure       csv: TIMESTAMP, ContextTokens, GeneratedTokens (Azure Public Dataset, LLM inference traces)
    mooncake    jsonl: timestamp (ms), input_length, output_length, hash_ids (Mooncake, FAST'25 traces)
    spec_bench  jsonl: question_id, category, turns; the first turn is the prompt (Spec-Bench)
    sharegpt    json: a list of {"conversations": [{"from", "value"}, ...]}; the first two turns are prompt and completion

    Raises ValueError if the file is of none of these forms or holds nothing usable."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"workload.path={str(path)!r}: there is no such file")
    with _open(path) as file:
        name = _detect(path, file) if format == "auto" else format
    with _open(path) as file:
        try:
            entries = list(itertools.islice(READERS[name](file), max_entries))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"workload.path={str(path)!r} does not read as {name}: {type(error).__name__}: {error}") from error
    if not entries:
        raise ValueError(f"workload.path={str(path)!r} holds no usable {name} entries")
    return entries


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _detect(path: Path, file: TextIO) -> str:
    start = file.read(65536).lstrip()
    line = start.partition("\n")[0]
    if start.startswith("["):
        return "sharegpt"
    if not line.startswith("{") and "ContextTokens" in line:
        return "azure"
    for key, name in (("hash_ids", "mooncake"), ("turns", "spec_bench")):
        if line.startswith("{") and f'"{key}"' in line:
            return name
    raise ValueError(
        f"workload.path={str(path)!r} begins with {line[:80]!r}, which is none of {', '.join(READERS)}; "
        "name the form with workload.format=..."
    )


def _azure(file: TextIO) -> Iterator[TraceEntry]:
    start: datetime | None = None
    for row in csv.DictReader(file):
        time = datetime.fromisoformat(row["TIMESTAMP"])
        start = start or time
        yield TraceEntry(
            (time - start).total_seconds(),
            num_prompt_tokens=int(row["ContextTokens"]),
            num_output_tokens=int(row["GeneratedTokens"]),
        )


def _mooncake(file: TextIO) -> Iterator[TraceEntry]:
    start: float | None = None
    for row in _lines(file):
        time = row["timestamp"] / 1000
        start = time if start is None else start
        yield TraceEntry(time - start, row["input_length"], row["output_length"], tuple(row["hash_ids"]))


def _spec_bench(file: TextIO) -> Iterator[TraceEntry]:
    for row in _lines(file):
        yield TraceEntry(prompt=row["turns"][0])


def _sharegpt(file: TextIO) -> Iterator[TraceEntry]:
    for row in json.load(file):
        turns = row["conversations"]
        if len(turns) >= 2:
            yield TraceEntry(prompt=turns[0]["value"], completion=turns[1]["value"])


def _lines(file: Iterable[str]) -> Iterator[dict]:
    return (json.loads(line) for line in file if line.strip())


READERS: dict[str, Callable[[TextIO], Iterator[TraceEntry]]] = {
    "azure": _azure,
    "mooncake": _mooncake,
    "spec_bench": _spec_bench,
    "sharegpt": _sharegpt,
}
