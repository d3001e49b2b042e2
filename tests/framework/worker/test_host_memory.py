"""Memory of the host, of which a container may have less than the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.worker.host_memory import Memory, host_memory

GIB = 1 << 30


def table(file: Path, **numbers: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name} {number}\n" for name, number in numbers.items()))


def group(folder: Path, limit: str, used: int, files: int) -> None:
    """A control group of version 2 (or with the names of version 1): bytes used, of which ``files`` in the page cache."""
    old = "memory" in folder.parts
    table(folder / "memory.stat", active_file=0, inactive_file=files, total_active_file=files // 2, total_inactive_file=files // 2)
    (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    table(tmp_path / "proc" / "meminfo", **{"MemTotal:": 24 << 20, "MemAvailable:": 20 << 20})
    return tmp_path / "proc"


def membership(proc: Path, line: str) -> None:
    (proc / "self").mkdir()
    (proc / "self" / "cgroup").write_text(f"9:cpu:/elsewhere\n{line}\n")


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("0::/", "cgroups"),  # a container sees its own group as the root
        ("0::/slurm/job_7/step_0", "cgroups/slurm/job_7"),  # a group bounds those within it
        ("4:memory:/docker/abc", "cgroups/memory"),
        ("4:memory:/docker/abc", "cgroups/memory/docker/abc"),
    ],
)
def test_the_limit_of_a_control_group_counts(line: str, folder: str, proc: Path, tmp_path: Path) -> None:
    membership(proc, line)
    group(tmp_path / folder, str(4 * GIB), 3 * GIB, files=GIB)
    assert host_memory(proc, tmp_path / "cgroups") == Memory(2 * GIB, 4 * GIB)


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_a_group_without_a_limit_has_all_of_it(limit: str, proc: Path, tmp_path: Path) -> None:
    membership(proc, "0::/")
    group(tmp_path / "cgroups", limit, 3 * GIB, files=0)
    assert host_memory(proc, tmp_path / "cgroups") == Memory(20 * GIB, 24 * GIB)


def test_without_control_groups(proc: Path, tmp_path: Path) -> None:
    assert host_memory(proc, tmp_path / "none") == Memory(20 * GIB, 24 * GIB)
