"""How much memory this process may take of its host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: what could be allocated now, and all there are."""

    available: int
    total: int


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Memory | None:
    """On Linux what it can free for programs, within the limits of this process's control groups, which containers and batch
    systems set; elsewhere all of it. None if it cannot be known."""
    if (proc / "meminfo").is_file():
        kib = _numbers(proc / "meminfo")
        bounds = [Memory(1024 * kib["MemAvailable:"], 1024 * kib["MemTotal:"]), *_limits(proc, cgroups)]
        return Memory(min(bound.available for bound in bounds), min(bound.total for bound in bounds))
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(total, total)
    return None


def _limits(proc: Path, cgroups: Path) -> Iterator[Memory]:
    """Of each control group with a limit that this process is in, of version 2 or 1. A container may show its own group as the
    root, under whatever path."""
    for line in (proc / "self" / "cgroup").read_text().splitlines() if (proc / "self" / "cgroup").is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit_file, used_file, prefix = cgroups, "memory.max", "memory.current", ""
        elif controllers == "memory":
            root, limit_file, used_file, prefix = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            text = (group / limit_file).read_text().strip() if (group / limit_file).is_file() else "max"
            if text != "max" and group.is_relative_to(root):
                files = _numbers(group / "memory.stat")
                reclaimable = files[f"{prefix}active_file"] + files[f"{prefix}inactive_file"]
                used = int((group / used_file).read_text()) - reclaimable
                yield Memory(max(0, int(text) - used), int(text))


def _numbers(table: Path) -> dict[str, int]:
    """The first two words of each line."""
    return {words[0]: int(words[1]) for words in map(str.split, table.read_text().splitlines()) if len(words) > 1}
