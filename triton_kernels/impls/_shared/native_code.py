"""C sources of CPU impls, compiled for the machine at first use and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
# What vectorizing sums and selections needs of fast math; infinities and NaN keep their meaning.
_MATH = ("-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
ELEMENTS = {torch.float32: "-DBF16=0", torch.bfloat16: "-DBF16=1"}
"""dtypes that the sources can be compiled for, and how."""


def library_reasons(source: str, dtype: torch.dtype, *defines: str) -> list[str]:
    """Why ``library`` would fail; empty when it works."""
    if dtype not in ELEMENTS:
        return [f"takes float32 and bfloat16, not {dtype}"]
    try:
        library(source, dtype, *defines)
    except (RuntimeError, OSError) as error:
        return [str(error)]
    return []


@functools.cache
def library(source: str, dtype: torch.dtype, *defines: str) -> ctypes.CDLL:
    """The compiled ``source`` (a file beside this one) for one element type. RuntimeError: no compiler, or it failed."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler (cc, gcc or clang) on the PATH")
    path = Path(__file__).with_name(source)
    sources = [path, *sorted(path.parent.glob("*.h"))]
    command = [compiler, *_FLAGS, *_MATH, *_WIDE, ELEMENTS[dtype], *defines, str(path), "-lm"]
    key = hashlib.sha256(repr((command, [each.read_bytes() for each in sources], _processor())).encode()).hexdigest()[:24]
    cached = _cache_folder() / f"{path.stem}-{key}.so"
    if not cached.is_file():
        _compile(command, cached)
    return ctypes.CDLL(str(cached))


def _compile(command: list[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the C compiler failed ({' '.join(command)}): {done.stderr.strip()}")
        os.replace(output, target)  # whole or not at all, whoever else compiles the same


def _cache_folder() -> Path:
    folder = Path.home() / ".cache" / "kernelswap"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="kernelswap-"))


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else [platform.processor()]
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})) or lines[0]
