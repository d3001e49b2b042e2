"""``kernels check --sanitize``: a store beyond the end is found, a correct kernel is not accused; or why it cannot be said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from framework.cli.child import run_module

BEYOND = """
import torch
import triton
import triton.language as tl

from triton_kernels.impl import impl


@triton.jit
def first_half(x, columns, width):
    return tl.load(x + columns, mask=columns < width)


@triton.jit
def beyond_kernel(x, out, stride, width, EXTRA: tl.constexpr):
    row, columns = tl.program_id(0), tl.arange(0, 128)
    tl.store(out + row * width + columns, first_half(x + row * stride, columns, width), mask=columns < width + EXTRA)


def _kernel(name, extra):
    @impl("silu_and_mul", name, requires=("triton",))
    def launch(x):
        out = x.new_empty(x.shape[0], x.shape[1] // 2)
        beyond_kernel[(x.shape[0],)](x, out, x.stride(0), out.shape[1], EXTRA=extra)
        return out

    return launch


beyond, within = _kernel("beyond", 1), _kernel("within", 0)
"""


def usable() -> bool:
    code = "from triton_kernels.lab.sanitizer import missing; raise SystemExit(bool(missing()))"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


def check(plugin: Path, kernel: str, *words: str) -> subprocess.CompletedProcess[str]:
    words = ("kernels", "check", kernel, *words, "--plugin", str(plugin))
    return run_module("framework.cli", words, capture_output=True)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.py"
    path.write_text(BEYOND)
    return path


@pytest.mark.slow
def test_accesses_outside_of_tensors_are_found(plugin: Path) -> None:
    if not usable():
        pytest.skip("triton-viz is not installed, or does not fit the installed Triton")
    wrong = check(plugin, "silu_and_mul:beyond", "--sanitize")
    assert wrong.returncode == 1 and "OUTSIDE" in wrong.stdout, wrong.stderr
    assert "beyond, one_row, fp32: store at byte 256 of 256 of out" in wrong.stdout, "one row of 64 numbers"
    right = check(plugin, "silu_and_mul:within", "--sanitize")
    assert right.returncode == 0 and ", 0 accesses outside" in right.stdout, right.stdout
    assert "strided" in right.stdout, "rows of a view are where the view says"


def test_the_reason_is_said_where_the_sanitizer_cannot_run(plugin: Path) -> None:
    if usable():
        pytest.skip("triton-viz fits the installed Triton")
    done = check(plugin, "silu_and_mul:within", "--sanitize")
    assert done.returncode == 2 and ("pip install kernelswap[viz]" in done.stderr or "does not fit Triton" in done.stderr)
