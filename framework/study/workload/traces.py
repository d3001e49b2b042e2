"""Recorded workloads: readers of public formats, in a table."""

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

    time_s       seconds since the trace's first request
    block_ids    names of the prompt's blocks of MOONCAKE_BLOCK_TOKENS tokens: equal names, equal tokens
    completion   the recorded completion, whose length tells how long ours may be
    """

    time_s: float | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    block_ids: tuple[int, ...] | None = None
    prompt: str | None = None
    completion: str | None = None


@dataclass(frozen=True)
class TraceFormat:
    """One form of trace files.

    form             what a file holds, and whose form it is
    read             a file, from its start -> its usable entries
    matches          whether a file is of this form, by the first line that is not empty
    needs_tokenizer  its prompts are texts
    has_times        it says when requests came, so that they can come so again
    """

    form: str
    read: Callable[[TextIO], Iterator[TraceEntry]]
    matches: Callable[[str], bool]
    needs_tokenizer: bool = False
    has_times: bool = False


def read_trace(path: str | Path, format: str = "auto", max_entries: int | None = None) -> tuple[TraceFormat, list[TraceEntry]]:
    """The form of a file (a name in FORMATS, or auto: by the file) and its first ``max_entries`` usable entries; a .gz file is
    read as it is. Raises ValueError if it is not of the form, or of none, or holds nothing usable."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"workload.path={str(path)!r}: there is no such file")
    name = _detect(path) if format == "auto" else format
    with _open(path) as file:
        try:
            entries = list(itertools.islice(FORMATS[name].read(file), max_entries))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"workload.path={str(path)!r} does not read as {name} ({FORMATS[name].form}): {type(error).__name__}: {error}"
            ) from error
    if not entries:
        raise ValueError(f"workload.path={str(path)!r} holds no usable {name} entries")
    return FORMATS[name], entries


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _detect(path: Path) -> str:
    with _open(path) as file:
        line = file.read(65536).lstrip().partition("\n")[0]
    for name, format in FORMATS.items():
        if format.matches(line):
            return name
    raise ValueError(
        f"workload.path={str(path)!r} begins with {line[:80]!r}, which is none of {', '.join(FORMATS)}; "
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


def _has_key(key: str) -> Callable[[str], bool]:
    return lambda line: line.startswith("{") and f'"{key}"' in line


FORMATS = {
    "azure": TraceFormat(
        "csv: TIMESTAMP, ContextTokens, GeneratedTokens; Azure Public Dataset, LLM inference traces",
        _azure,
        lambda line: not line.startswith("{") and "ContextTokens" in line,
        has_times=True,
    ),
    "mooncake": TraceFormat(
        "jsonl: timestamp (ms), input_length, output_length, hash_ids; Mooncake, FAST'25 traces",
        _mooncake,
        _has_key("hash_ids"),
        has_times=True,
    ),
    "spec_bench": TraceFormat(
        "jsonl: question_id, category, turns; Spec-Bench; the first turn is the prompt",
        _spec_bench,
        _has_key("turns"),
        needs_tokenizer=True,
    ),
    "sharegpt": TraceFormat(
        'json: a list of {"conversations": [{"from", "value"}, ...]}; ShareGPT; the first two turns are prompt and completion',
        _sharegpt,
        lambda line: line.startswith("["),
        needs_tokenizer=True,
    ),
}
"""The table of forms; adding one is an entry. ``workload.format`` names them."""
