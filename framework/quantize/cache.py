"""Quantized checkpoints that engines make at their start, kept in the user's cache folder for the next start."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, replace
from pathlib import Path

from ..config import QuantConfig
from ..models.quantization import packing, rounding
from .checkpoint import quantize_checkpoint
from .output import locked
from .source import Source

CACHE = Path("~/.cache/kernelswap/quantized")


def cached_checkpoint(model: str, config: QuantConfig) -> Path:
    """The model quantized as ``quantize_checkpoint`` does it; made at the first call, while other processes that ask for the same
    wait. Another one is made when files of the model, the settings, the calibration text or the code change."""
    source = Source(model)
    folder = CACHE.expanduser() / f"{source.folder.name}-{config.scheme}-{_digest(source, config)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with locked(lock):
            if not folder.is_dir():
                quantize_checkpoint(model, folder, config)
            lock.unlink(missing_ok=True)
    return folder


def _digest(source: Source, config: QuantConfig) -> str:
    files = sorted(path for path in source.folder.iterdir() if path.is_file())
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    code = [*sorted(Path(__file__).parent.glob("*.py")), *(Path(str(module.__file__)) for module in (rounding, packing))]
    text = platform.python_version() if config.calibration is None else _file_digest(Path(config.calibration).expanduser())
    facts = [identity, asdict(replace(config, fuse=True)), [_file_digest(path) for path in code], text]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
