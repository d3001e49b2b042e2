"""What must be equal in all workers of an engine, before it serves."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from .messages import Built

PACKAGES = ("torch", "triton", "numpy")
OWN_FACTS = ("num_blocks", "weight_bytes", "nominal_weight_bytes")
"""What each rank may have its own of."""


def versions() -> dict[str, str]:
    """Of this process: Python, the packages that compute, this package with its sources."""
    root, digest = Path(__file__).parents[2], blake2b(digest_size=6)
    for package in ("framework", "triton_kernels"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    found = {"python": platform.python_version(), "kernelswap": f"{__version__} (sources {digest.hexdigest()})"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """key -> value, as text, of a configuration."""
    found: dict[str, str] = {}
    for name, value in vars(config).items():
        found.update(flat(value, f"{prefix}{name}.") if is_dataclass(value) else {prefix + name: repr(value)})
    return found


def refuse_versions(own: Mapping[str, str], rank: int, found: Mapping[str, str]) -> None:
    """Raises ValueError unless a rank has the driver's versions."""
    for name, ours, theirs in _differences(own, found):
        raise ValueError(
            f"{name} differs: {theirs} in the worker of rank {rank}, {ours} in the engine's process; install the same everywhere"
        )


def refuse_differences(config: Any, built: Sequence[Built]) -> None:
    """Raises ValueError unless all ranks have the driver's configuration, agree on what they are, and run the same kernel for
    every op that several of them run. built: in the order of ranks."""
    own = flat(config)
    for rank, found in enumerate(built):
        for key, ours, theirs in _differences(own, found.config):
            raise ValueError(f"{key} differs: {theirs} in the worker of rank {rank}, {ours} in the engine's process")
    kernels: dict[str, tuple[int, str]] = {}
    for rank, found in enumerate(built):
        for fact, ours, theirs in _differences(built[0].facts, found.facts):
            if fact not in OWN_FACTS:
                raise ValueError(f"{fact} differs: {ours!r} on rank 0, {theirs!r} on rank {rank}; are the model's files the same?")
        for op, report in found.plan.items():
            kernel = " ".join(str(report.get(name)) for name in ("choice", "version"))
            first, other = kernels.setdefault(op, (rank, kernel))
            if kernel != other:
                raise ValueError(
                    f"the kernel of {op} differs: {other} on rank {first}, {kernel} on rank {rank}; choose it by name "
                    f"(kernels.{op}), or make their devices, packages and tuned tables the same"
                )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            yield name, ours.get(name, "missing"), theirs.get(name, "missing")
