"""A direct launch takes the binary that the JIT would take, and compiles where it would compile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from triton_kernels.compile_counter import CompileCounter
from triton_kernels.impls._shared.launch import Launch, cdiv, next_power_of_2

from ..stub_driver import StubDriver, stub_driver


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["bias_ptr"])
def _kernel(x_ptr, bias_ptr, num_rows, stride, factor, out_ptr, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS
    column = tl.arange(0, BLOCK)
    mask = (column < width) & (row < num_rows)
    x = tl.load(x_ptr + row * stride + column, mask=mask) * factor + tl.load(bias_ptr + column, mask=column < width)
    tl.store(out_ptr + row * width + column, x, mask=mask)


MEMORY = torch.zeros(128)
X, OFF = MEMORY[:64], MEMORY[1:65]  # at a multiple of 16 bytes, and beside one
FIXED: dict[str, Any] = {"out_ptr": MEMORY[64:128], "width": 32, "BLOCK": 32, "num_warps": 2, "enable_fp_fusion": True}
BASE = (X, X, 4, 32, 2.0)
ARGUMENTS = {
    "the same": BASE,
    "misaligned address": (OFF, X, 4, 32, 2.0),
    "misaligned where nobody looks": (X, OFF, 4, 32, 2.0),
    "another dtype": (X.view(torch.int32), X, 4, 32, 2.0),
    "one, where nobody looks": (X, X, 1, 32, 2.0),
    "beyond 32 bits": (X, X, 2**31, 32, 2.0),
    "stride of 1": (X, X, 4, 1, 2.0),
    "stride of 33": (X, X, 4, 33, 2.0),
    "stride of 48": (X, X, 4, 48, 2.0),
    "stride beyond 32 bits": (X, X, 4, 2**33, 2.0),
    "integer for a number": (X, X, 4, 32, 2),
}
COMPILES_NOTHING = {"the same", "misaligned where nobody looks", "one, where nobody looks", "stride of 48"}


@pytest.fixture
def stub() -> Iterator[StubDriver]:
    _kernel.device_caches.clear()
    with stub_driver() as stub:
        stub.launches = []
        yield stub


def launched(stub: StubDriver, launch: Any, *args: Any, **constants: Any) -> Any:
    assert stub.launches is not None
    launch((3, 2), *args, **constants)
    return stub.launches.pop()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_launch_takes_the_binary_that_the_jit_would_take(stub: StubDriver, name: str) -> None:
    launch, args = Launch(_kernel, **FIXED), ARGUMENTS[name]
    before = launched(stub, launch, *BASE, ROWS=4)
    with CompileCounter() as counter:
        first, again = (launched(stub, launch, *args, ROWS=4) for _ in range(2))
    _kernel[(3, 2)](*args, **FIXED, ROWS=4)
    by_jit = stub.launches.pop()  # type: ignore[union-attr]
    assert first.binary == again.binary == by_jit.binary
    assert (first.binary == before.binary) == (name in COMPILES_NOTHING)
    assert bool(counter.compiled + counter.loaded) == (name not in COMPILES_NOTHING)
    assert launched(stub, launch, *BASE, ROWS=4).binary == before.binary, "the first variant is still there"
    assert again.grid == (3, 2, 1) and again.args[:7] == (*args, FIXED["out_ptr"], 32)
    assert len(again.args) == len(by_jit.args), "constexprs keep their places"


def test_constants_of_a_call_are_part_of_the_variant(stub: StubDriver) -> None:
    launch = Launch(_kernel, **{**FIXED, "num_warps": 4})
    four, eight = launched(stub, launch, *BASE, ROWS=4), launched(stub, launch, *BASE, ROWS=8)
    assert four.binary != eight.binary == launched(stub, launch, *BASE, ROWS=8).binary


def test_each_device_has_its_own_binaries(stub: StubDriver) -> None:
    launch = Launch(_kernel, **FIXED)
    here = launched(stub, launch, *BASE, ROWS=4)
    stub.device += 1
    there = launched(stub, launch, *BASE, ROWS=4)
    assert here.binary != there.binary == launched(stub, launch, *BASE, ROWS=4).binary


def test_hooks_hear_every_launch(stub: StubDriver) -> None:
    launch, heard = Launch(_kernel, **FIXED), []
    launched(stub, launch, *BASE, ROWS=4)
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        hook.add(heard.append)
        launched(stub, launch, *BASE, ROWS=4)
        hook.remove(heard.append)
    _kernel.add_pre_run_hook(lambda *args, **kwargs: heard.append(kwargs))
    launched(stub, launch, *BASE, ROWS=4)
    _kernel.pre_run_hooks.clear()
    launched(stub, launch, *BASE, ROWS=4)
    assert len(heard) == 3


def test_what_stands_in_for_the_jit_hears_every_launch(stub: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, heard = Launch(_kernel, **FIXED), []
    launched(stub, launch, *BASE, ROWS=4)
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *args, **keywords: heard.append(keywords))
    launch((3,), *BASE, ROWS=4)
    assert heard == [{"grid": (3,), "warmup": False, **FIXED, "ROWS": 4}] and not stub.launches


def test_arguments_in_the_wrong_places_are_refused(stub: StubDriver) -> None:
    with pytest.raises(AssertionError, match="after what a call gives"):
        Launch(_kernel, stride=32, BLOCK=32)
    with pytest.raises(AssertionError, match="by position"):
        Launch(_kernel, **FIXED)((1,), *BASE[:-1], ROWS=4)


class Sizes(NamedTuple):
    BLOCK: int
    STRIDES: tuple[int, ...]


@triton.jit
def _sized_kernel(x_ptr, width, C: tl.constexpr):
    column = tl.arange(0, C.BLOCK)
    tl.store(x_ptr + column * C.STRIDES[1], column, mask=column < width)


def test_named_tuples_are_constants(stub: StubDriver) -> None:
    """Fixed, or of a call; equal ones are one variant."""
    small, large = Sizes(16, (1, 2)), Sizes(32, (1, 2))
    fixed = Launch(_sized_kernel, C=small, num_warps=1, enable_fp_fusion=True)
    launch = Launch(_sized_kernel, num_warps=1, enable_fp_fusion=True)
    binaries = [launched(stub, fixed, X, 8).binary for _ in range(2)]
    binaries += [launched(stub, launch, X, 8, C=Sizes(*small)).binary for _ in range(2)]
    other = [launched(stub, launch, X, 8, C=large).binary for _ in range(2)]
    assert len(set(binaries)) == len(set(other)) == 1 and binaries[0] != other[0]


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000])
def test_host_arithmetic_is_that_of_triton(n: int) -> None:
    assert next_power_of_2(n) == triton.next_power_of_2(n)
    assert [cdiv(n, by) for by in (1, 3, 16)] == [triton.cdiv(n, by) for by in (1, 3, 16)]


def test_no_shape_of_a_function_in_triton_itself_has_fields_of_a_tuple() -> None:
    """Triton 3.6 gives them as plain numbers, which functions like ``tl.zeros`` cannot take; ``tl.full`` is none."""
    files = (Path(__file__).parents[2] / "triton_kernels" / "impls").rglob("*.py")
    found = [f"{file.name}: {call[0]}" for file in files for call in re.finditer(r"tl\.zeros\([^\n]*\bC\.\w+", file.read_text())]
    assert not found
