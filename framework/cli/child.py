"""Child processes of the command line: Triton decides at import whether it interprets, and a compiler replaces its driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton_kernels.lab.aot import Compilation

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""As users write them -> torch's names."""


def compile_for(
    target: str,
    kernels: Iterable[str],
    plugins: Iterable[str] = (),
    dtype: str = "bf16",
    cases: Iterable[str] = (),
    max_cases: int | None = None,
    path: Iterable[Path] = (),
    done: Callable[[], object] = lambda: None,
) -> list[Compilation]:
    """Compiles ``op:impl`` names (or ``op:impl@key:value``) for a target, for all serving cases or those named (at most
    ``max_cases`` per impl), in a process of its own: it replaces Triton's driver. ``path``: folders that are first on its path;
    ``done`` is called after each case."""
    from triton_kernels.lab.aot import Compilation

    arguments = [target, *kernels, "--dtype", DTYPES[dtype]]
    arguments += [part for plugin in plugins for part in ("--plugin", plugin)]
    arguments += [part for case in cases for part in ("--case", case)]
    arguments += [] if max_cases is None else ["--max-cases", str(max_cases)]
    environment = {
        "PYTHONPATH": os.pathsep.join([*(str(p.resolve()) for p in path), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    found = []
    with tempfile.TemporaryFile("w+") as said:
        command, variables = _module("triton_kernels.lab.aot", arguments, environment=environment)
        with subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=said) as child:
            assert child.stdout is not None, "it is a pipe"
            for line in child.stdout:
                found.append(Compilation.from_dict(json.loads(line)))
                done()
        if child.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"compiling for {target} stopped with exit code {child.returncode}:\n{said.read()[-4000:]}")
    return found


def run_module(
    module: str, arguments: Sequence[str], *, interpret: bool = False, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m module`` with this checkout on its path; ``options`` are those of ``subprocess.run``."""
    command, variables = _module(module, arguments, interpret, environment)
    return subprocess.run(command, env=variables, text=True, **options)


def _module(
    module: str, arguments: Sequence[str], interpret: bool = False, environment: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """A command, and its environment."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | dict(environment or {})
    root = str(Path(__file__).parents[2])
    variables["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [variables.get("PYTHONPATH")])])
    if interpret:
        variables["TRITON_INTERPRET"] = "1"
    return [sys.executable, "-m", module, *arguments], variables
