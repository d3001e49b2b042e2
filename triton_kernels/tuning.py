"""Tuned options: what was measured to be best for a shape, in small tables keyed by op, architecture and shape bucket.

A table is a file ``<op>.<arch>.json``: ``{"triton": "3.6.0", "entries": [{"impl", "bucket", "options", ...}]}``. Those of the
package lie in ``tuned/``, a user's own in another folder. Of all entries the nearest bucket counts, and of equally near ones
the user's. Sizes may differ from the entry's by a factor of four in all; dtype, head size, page size and whatever else decides
what is legal must be equal. Where no entry is near, an impl's own rule decides, so that a new shape runs as it did untuned.
Tables made with another minor version of Triton are not used: its compiler allocates registers differently.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .spec import Spec

SIZES = frozenset(
    {
        "num_tokens",
        "in_features",
        "out_features",
        "hidden_size",
        "inner_size",
        "intermediate_size",
        "vocab_size",
        "num_experts",
        "num_heads",
        "num_kv_heads",
    }
)
"""Facts that are compared by their ratio; all others must be equal."""
MAX_OCTAVES = 2.0

Bucket = Mapping[str, Any]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """The best options of one impl in one bucket, with what was measured (microseconds; 0 = unknown)."""

    impl: str
    bucket: dict[str, Any]
    options: dict[str, Any]
    median_us: float = 0.0
    default_us: float = 0.0


@dataclass(frozen=True)
class Tuned:
    """What the tables say about one layer: options by number of tokens (None: whatever the number), and the hash of the
    tables' content ("" where they say nothing)."""

    by_tokens: Mapping[int | None, Options] = field(default_factory=dict)
    content_hash: str = ""

    def at(self, num_tokens: int | None = None) -> Options:
        """Options for a call: those of the nearest number of tokens within a factor of two, else none."""
        if num_tokens is None or None in self.by_tokens:
            return self.by_tokens.get(None, {})
        near = min(self.by_tokens, key=lambda known: _octaves(known, num_tokens), default=None)
        return self.by_tokens[near] if near is not None and _octaves(near, num_tokens) <= 1 else {}


NOT_TUNED = Tuned()


def layer_bucket(spec: Spec, num_tokens: int | None = None) -> dict[str, Any]:
    """The facts of a layer (and of a call) as they stand in a table."""
    facts = {**spec.facts, "dtype": spec.dtype, **({} if num_tokens is None else {"num_tokens": num_tokens})}
    return {name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value for name, value in facts.items()}


def distance(entry: Bucket, wanted: Bucket) -> float:
    """Octaves between the sizes of two buckets; infinite where a fact of the entry that is no size differs."""
    total = 0.0
    for name, value in entry.items():
        other = wanted.get(name)
        if value == other:
            continue
        if name not in SIZES or not (isinstance(value, int) and isinstance(other, int) and value > 0 and other > 0):
            return math.inf
        total += _octaves(value, other)
    return total


class TunedTables:
    """The tables of a list of folders, later ones before earlier ones."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self.folders = tuple(folders)
        self._files: dict[Path, dict[str, Any]] = {}

    @classmethod
    def load(cls, user: str | Path = "auto") -> TunedTables:
        """The package's tables, and a user's: of the usual folder ("auto"), of another, or none at all ("off"). Raises
        ValueError for a folder that does not exist."""
        if user == "off":
            return cls()
        folder = user_dir() if user == "auto" else Path(user).expanduser()
        if user != "auto" and not folder.is_dir():
            raise ValueError(f"tuned={str(user)!r} cannot work: it must be auto, off, or a folder with tables; this is no folder")
        return cls((Path(__file__).with_name("tuned"), folder))

    def lookup(self, op: str, impl: str, options: Collection[str], spec: Spec) -> Tuned:
        """What is known about an impl in a layer of ``spec``. Entries with options other than its ``options`` are ignored."""
        wanted = layer_bucket(spec)
        nearest: dict[int | None, tuple[float, Options]] = {}
        digest = hashlib.sha256()
        for folder in reversed(self.folders):
            for entry in self._entries(folder, op, spec.arch):
                static = {name: value for name, value in entry.bucket.items() if name != "num_tokens"}
                octaves = distance(static, wanted)
                if entry.impl != impl or octaves > MAX_OCTAVES or not set(entry.options) <= set(options):
                    continue
                digest.update(json.dumps(asdict(entry), sort_keys=True).encode())
                num_tokens = entry.bucket.get("num_tokens")
                if num_tokens not in nearest or octaves < nearest[num_tokens][0]:
                    nearest[num_tokens] = octaves, entry.options
        return Tuned({n: options for n, (_, options) in nearest.items()}, digest.hexdigest()[:12]) if nearest else NOT_TUNED

    def _entries(self, folder: Path, op: str, arch: str) -> list[Entry]:
        path = table_path(folder, op, arch)
        if path not in self._files:
            self._files[path] = _read(path)
        table = self._files[path]
        if not table or _minor(table["triton"]) != _minor(triton_version()):
            return []
        return [Entry(**entry) for entry in table["entries"]]


def save_entries(folder: Path, op: str, arch: str, entries: Iterable[Entry]) -> Path:
    """Adds entries to a table of ``folder``, in place of those for the same impl and bucket. A table that was made with another
    version of Triton is begun anew."""
    path = table_path(folder, op, arch)
    table = _read(path)
    kept = [Entry(**e) for e in table["entries"]] if table and table["triton"] == triton_version() else []
    new = list(entries)
    kept = [old for old in kept if not any(old.impl == e.impl and old.bucket == e.bucket for e in new)]
    content = {"op": op, "arch": arch, "triton": triton_version(), "entries": [asdict(entry) for entry in kept + new]}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def table_path(folder: Path, op: str, arch: str) -> Path:
    return folder / f"{op}.{arch}.json"


def user_dir() -> Path:
    """Where this platform keeps a user's configuration."""
    base = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".config")
    return base / "kernelswap" / "tuned"


def triton_version() -> str:
    """Of the installed Triton; "none" without one."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(table["triton"], str)
        _ = [Entry(**entry) for entry in table["entries"]]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path} is no table of tuned options ({type(error).__name__}: {error}): delete it") from error
    return table


def _octaves(a: int | None, b: int | None) -> float:
    return abs(math.log2(a / b)) if a and b else math.inf


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
