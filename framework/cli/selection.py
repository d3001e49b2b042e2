"""Which impls the words of a command line name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_kernels.impl import Impl
    from triton_kernels.registry import Registry


def select(registry: Registry, names: Iterable[str], triton_only: bool = False) -> list[Impl]:
    """Impls that ``OP``, ``OP:all`` and ``OP:IMPL`` name; references are left out unless named."""
    chosen: list[Impl] = []
    for name in names:
        op, _, impl = name.partition(":")
        found = registry.impls(op)
        if impl in ("", "all"):
            chosen += [i for i in found.values() if i.name != "reference" and (i.is_triton or not triton_only)]
        elif impl not in found:
            raise ValueError(f"{op} has no impl named {impl!r}; there are {', '.join(found)}{failures(registry)}")
        elif triton_only and not found[impl].is_triton:
            raise ValueError(f"{name} is no Triton kernel, there is nothing to compile")
        else:
            chosen.append(found[impl])
    return chosen


def failures(registry: Registry) -> str:
    return "".join(f"\nfailed to load {failure.source}: {failure.error}" for failure in registry.failures)
