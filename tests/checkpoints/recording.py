"""What lies beside each checkpoint: ``expected.safetensors`` and ``meta.json``; and what is left out of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
from base_models import INPUT_IDS
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
KEPT = {"config.json", "model.safetensors", "quantize_config.json", "quantization_config.json", "quant_config.json"}
LIMIT = 1_000_000
"""Bytes of a checkpoint."""


def keep(made: Path, name: str) -> Path:
    """Copies what the tool wrote, less tokenizer and the like, to the folder of that name here and returns it."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in sorted(made.iterdir()):
        if file.name in KEPT:
            shutil.copyfile(file, folder / file.name)
    return folder


def record(
    folder: Path,
    *,
    tool: str,
    packages: Sequence[str],
    has: str,
    settings: object,
    dequantize: Callable[[str, reference.Module], np.ndarray | None],
    base: Any,
    own: Mapping[str, np.ndarray] = {},
    own_path: str,
    extra: Mapping[str, tuple[np.ndarray, str]] = {},
    notes: Sequence[str] = (),
) -> None:
    """Writes the two files.

    dequantize  the format's definition, see ``reference.plain``; gives ``logits``
    extra       name -> (logits by the definition, how they were made), where activations or the cache are quantized as well
    own         the logits that the tool's own loader finds and which of the above they are; held against them in meta.json
    own_path    which loader that was
    base        the float model that was quantized: a convention misread makes the logits far from its
    """
    tensors = reference.read(folder)
    plain = reference.logits(reference.load(folder, reference.plain(tensors, dequantize)))
    expected = {"logits": plain} | {name: found for name, (found, _) in extra.items()}
    if not np.isfinite(plain).all() or plain.std() < 0.5:
        raise ValueError(f"{folder.name}: the expected logits are flat or not finite: std {plain.std()}")
    differences = {name: reference.error(found, expected[name]) for name, found in own.items()}
    from_base = reference.error(plain, reference.logits(base.double()))
    meta = {
        "has": has,
        "tool": tool,
        "versions": {package: importlib.metadata.version(package) for package in packages} | {"python": platform.python_version()},
        "command": f"python tests/checkpoints/{Path(sys.argv[0]).name} {folder.name}",
        "date": date.today().isoformat(),
        "settings": settings,
        "expected": {
            "logits": "float64: weights dequantized in float64 by reference.py, exact activations and cache, transformers eager",
            **{name: how for name, (_, how) in extra.items()},
        },
        "own_loader": {
            "path": own_path,
            "relative_difference": {name: reference.error(f, expected[name]) for name, f in own.items()},
        },
        "relative_difference_to_float_model": from_base,
        "notes": list(notes),
        "tensors": {name: f"{dtype} {shape}" for name, dtype, shape in _listing(folder)},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, default=str) + "\n")
    save_file({"input_ids": np.array(INPUT_IDS, np.int64)} | expected, folder / "expected.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > LIMIT:
        raise ValueError(f"{folder.name}: {size} bytes, more than {LIMIT}")
    print(f"MADE {folder.name}: {size} bytes; own loader differs by {differences}, the float model by {from_base:.3f}", flush=True)


def wanted(names: Sequence[str]) -> list[str]:
    """The checkpoints named on the command line, all if none is."""
    unknown = set(sys.argv[1:]) - set(names)
    if unknown:
        raise SystemExit(f"unknown: {sorted(unknown)}; there are {list(names)}")
    return sys.argv[1:] or list(names)


def offline() -> None:
    """To be called before the tool is imported: nothing is to be asked of a hub, and no GPU is used."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    torch.manual_seed(0)


def _listing(folder: Path) -> list[tuple[str, str, list[int]]]:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        names = sorted(opened.keys())
        return [(n, str(opened.get_slice(n).get_dtype()), list(opened.get_slice(n).get_shape())) for n in names]
