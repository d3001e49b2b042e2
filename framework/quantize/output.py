"""Where the quantized checkpoint goes: sharded safetensors files in a folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..models.hub import METADATA_PATTERNS

SHARD_BYTES = 2**30
"""Of a shard at most, unless one tensor is larger: what is not yet written is kept in memory."""
INDEX = "model.safetensors.index.json"
_UNFINISHED = re.compile(r"\..+-unfinished-[a-z0-9_]{8}")
_LOCK = "lock"
"""A file in an unfinished folder, locked while a process writes there; it has this name only once it is locked."""


def check_free(folder: Path) -> None:
    """Raises ValueError if something is there."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        found = "a file" if folder.is_file() else f"a folder with {sum(1 for _ in folder.iterdir())} entries"
        raise ValueError(f"{folder} is {found}; a quantized checkpoint goes into a new or an empty folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into, which takes its place at the end, and is removed if anything is raised. Those that
    killed processes have left there are removed too."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-unfinished-"))
    try:
        with locked(temporary / f"{_LOCK}.new"):
            (temporary / f"{_LOCK}.new").rename(temporary / _LOCK)
            yield temporary
            for path in temporary.iterdir():
                path.chmod(0o644)  # safetensors and mkdtemp make things for their owner only
            temporary.chmod(0o755)
            (temporary / _LOCK).unlink()
            temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes a file and holds its lock, which ends with its process, however that ends. Waits while another process holds it."""
    with path.open("w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_abandoned(parent: Path) -> None:
    """Removes unfinished folders whose lock no process holds."""
    for folder in [path for path in parent.iterdir() if _UNFINISHED.fullmatch(path.name)]:
        with suppress(OSError), (folder / _LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def copy_metadata(source: Path, folder: Path, changes: Mapping[str, Any]) -> None:
    """config.json with ``changes``, and as they are the tokenizer, generation_config.json and what else is no weight."""
    for pattern in METADATA_PATTERNS:
        for path in source.glob(pattern):
            if path.name != INDEX:
                shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, **changes})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class ShardWriter:
    """Writes tensors in the order in which they come. Names on disk must differ."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes a tensor, and writes a shard before it would not fit."""
        assert name not in self._waiting and all(name not in shard for shard in self._shards), name
        if self._waiting and _bytes(self._waiting) + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._waiting[name] = tensor.cpu().contiguous()

    def close(self) -> None:
        """Writes the rest, gives the shards their final names, and writes the index."""
        self._flush()
        if len(self._shards) == 1:
            (self._folder / _part(0)).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            (self._folder / _part(number)).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        write_json(self._folder / INDEX, {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map})

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._folder / _part(len(self._shards))
        try:
            save_file(self._waiting, path, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{path} cannot be written: {error}") from error
        self._shards.append(list(self._waiting))
        self._total_bytes += _bytes(self._waiting)
        self._waiting = {}


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
