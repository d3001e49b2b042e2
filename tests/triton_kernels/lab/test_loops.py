"""Figures of main loops: read from code that is written out here, and from small kernels whose loops overlap loads or do not."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from framework.cli.child import compile_for
from triton_kernels.devices import TARGETS
from triton_kernels.lab import ttgir
from triton_kernels.lab.aot import Artifact
from triton_kernels.lab.gates import check_gates
from triton_kernels.lab.loop_table import loop_rows
from triton_kernels.lab.loops import main_loops
from triton_kernels.ops import OPS

CHAINED = Path(__file__).with_name("chained_kernels.py")
DECODE = """
  tt.func public @kernel(%k: !tt.ptr<bf16> loc("k"(#loc)), %table: !tt.ptr<i32> loc("table"(#loc))) attributes {noinline = false} {
    %buffers = ttg.local_alloc : () -> !ttg.memdesc<2x64x128xbf16, #shared, #smem, mutable> loc(#loc1)
    %numbers = ttg.local_alloc : () -> !ttg.memdesc<1x64xi32, #shared, #smem, mutable> loc(#loc1)
    %place = ttg.memdesc_index %buffers[%c0] : !ttg.memdesc<2x64x128xbf16> -> !ttg.memdesc<64x128xbf16> loc(#loc1)
    %first = ttg.async_copy_global_to_local %a, %place : tensor<64x128x!tt.ptr<bf16>, #blocked> -> <64x128xbf16, #shared> loc(#loc1)
    %acc:2 = scf.for %i = %c0 to %n step %c1 iter_args(%sum = %zero, %here = %place) -> (tensor<16x64xf32>, !ttg.memdesc<64xf8>) {
      %page = ttg.async_copy_global_to_local %p, %numbers : tensor<64x!tt.ptr<i32>, #blocked> -> <64xi32, #shared> loc(#loc1)
      %next = ttg.memdesc_index %buffers[%i] : !ttg.memdesc<2x64x128xbf16> -> !ttg.memdesc<64x128xbf16> loc(#loc1)
      %tile = ttg.async_copy_global_to_local %b, %next : tensor<64x128x!tt.ptr<bf16>, #blocked> -> <64x128xbf16, #shared> loc(#l)
      %token = ttg.async_wait %first, %tile {num = 2 : i32} loc(#loc1)
      %kept = ttg.local_load %here token %token : !ttg.memdesc<64x128xbf16> -> tensor<64x128xbf16, #linear> loc(#loc1)
      %peak = "tt.reduce"(%kept) <{axis = 1 : i32}> ({
      ^bb0(%x: f32 loc(callsite(#loc1 at #loc2)), %y: f32 loc(callsite(#loc1 at #loc2))):
        tt.reduce.return %x : f32 loc(#loc1)
      }) : (tensor<64x128xbf16, #mma>) -> tensor<64xf32> loc(#loc1)
      %dot = tt.dot %q, %kept, %sum : tensor<16x128xbf16, #a> * tensor<128x64xbf16, #b> -> tensor<16x64xf32, #mma> loc(#loc1)
      scf.yield %dot, %next : tensor<16x64xf32>, !ttg.memdesc<64x128xbf16> loc(#loc1)
    } loc(#loc1)
"""
TMA = """
    %buffers = ttg.local_alloc : () -> !ttg.memdesc<2x64x64xi8, #shared, #smem, mutable>
    %signals = ttg.local_alloc : () -> !ttg.memdesc<2x1xi64, #shared2, #smem, mutable>
    %signal = ttg.memdesc_index %signals[%c0] : !ttg.memdesc<2x1xi64> -> !ttg.memdesc<1xi64>
    ttng.async_tma_copy_global_to_local %x[%c0, %c0] %buffers, %signal, %true : !tt.tensordesc<64x64xi8> -> !ttg.memdesc<64x64xi8>
    MORE
    scf.for %i = %c0 to %n step %c1  : i32 {
      %done = ttg.memdesc_index %signals[%i] : !ttg.memdesc<2x1xi64> -> !ttg.memdesc<1xi64>
      ttng.wait_barrier %done, %phase : !ttg.memdesc<1xi64>
      %dot = ttng.warp_group_dot %w, %buffers, %acc : !ttg.memdesc<64x64xi8> * !ttg.memdesc<64x64xi8> -> tensor<64x64xf32>
      ttng.async_tma_copy_global_to_local %x[%i, %c0] %buffers, %done, %true : !tt.tensordesc<64x64xi8> -> !ttg.memdesc<64x64xi8>
    }
"""
AMD = """
  %tile = tt.load %a : tensor<16x16x!tt.ptr<bf16>, #blocked>
  %buffers = ttg.local_alloc : () -> !ttg.memdesc<1x16x16xbf16, #shared, #smem, mutable>
  scf.for %i = %c0 to %n step %c1  : i32 {
    %next = tt.load %a : tensor<16x16x!tt.ptr<bf16>, #blocked>
    %dot = tt.dot %q, %k, %sum : tensor<16x16xbf16, #a> * tensor<16x16xbf16, #b> -> tensor<16x16xf32, #mma>
    %turned = amdg.in_thread_transpose %next : tensor<16x16xbf16> -> tensor<16x16xbf16>
    ttg.local_store %turned, %buffers : tensor<16x16xbf16> -> !ttg.memdesc<16x16xbf16>
  }
"""
LOAD, PRODUCT, WAIT = (
    "global_load_dwordx4 v[0:3], v[4:5], off",
    "v_mfma_f32_16x16x16_bf16 v[6:9], v[0:1], v[2:3], v[6:9]",
    "s_waitcnt vmcnt(0)",
)


def amd_assembly(*body: str) -> str:
    return "\n".join([".LBB0_1:", *(f"\t{line}" for line in body), "\ts_cbranch_scc1 .LBB0_1", "  .vgpr_count: 32"])


def test_a_loop_of_async_copies() -> None:
    (loop,) = ttgir.main_loops(DECODE)
    assert [op.bytes for op in loop.loads] == [64 * 4, 64 * 128 * 2]
    assert [op.bytes for op in loop.tiles] == [64 * 128 * 2], "page numbers are no tile"
    assert (loop.buffers, loop.wait) == (2, 2)
    assert [op.flops for op in loop.products] == [2 * 16 * 128 * 64] and loop.products[0].format == "bf16"


@pytest.mark.parametrize(
    ("line", "replacement", "buffers", "wait"),
    [
        ("%page = ", "%page = ttg.async_copy_global_to_local %k, %other : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>", 1, 2),
        ("%page = ", "%token2 = ttg.async_wait {num = 0 : i32}", 2, 0),
        ("%tile = ", "%tile = ttg.async_copy_global_to_local %b, %here : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>", 2, 2),
        ("%tile = ", "%tile = tt.load %b : tensor<64x128x!tt.ptr<bf16>, #blocked>", 0, 2),
    ],
    ids=["another tile with one buffer", "another wait", "memory that is a variable of the loop", "registers only"],
)
def test_the_worst_tile_and_wait_of_a_loop_count(line: str, replacement: str, buffers: int, wait: int) -> None:
    memory = "    %other = ttg.local_alloc : () -> !ttg.memdesc<1x64x128xbf16, #shared, #smem, mutable>"
    lines = DECODE.strip("\n").splitlines()
    (loop,) = ttgir.main_loops("\n".join([lines[0], memory, *(replacement if line in each else each for each in lines[1:])]))
    assert (loop.buffers, loop.wait) == (buffers, wait)


HEADS = """
#blocked = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]}>
  tt.func public @kernel(%q: !tt.ptr<bf16> loc("q"(#loc)), %table: !tt.ptr<f32> loc("t"(#loc)), %half: i32 loc("h"(#loc))) {
    %row = tt.addptr %q, %half : !tt.ptr<bf16>, i32 loc(#loc1)
    %rows = tt.splat %row : !tt.ptr<bf16> -> tensor<8x64x!tt.ptr<bf16>, #blocked> loc(#loc1)
    %a = tt.load %rows : tensor<8x64x!tt.ptr<bf16>, #blocked> loc(#loc1)
    %again = ttg.convert_layout %rows : tensor<8x64x!tt.ptr<bf16>, #blocked> -> tensor<8x64x!tt.ptr<bf16>, #blocked1> loc(#loc1)
    %b = tt.load %again : tensor<8x64x!tt.ptr<bf16>, #blocked1> loc(#loc1)
    %tables = tt.splat %table : !tt.ptr<f32> -> tensor<8x64x!tt.ptr<f32>, #blocked1> loc(#loc1)
    %cos = tt.load %tables : tensor<8x64x!tt.ptr<f32>, #blocked1> loc(#loc1)
"""


def test_the_width_of_loads_is_that_of_each_argument() -> None:
    assert ttgir.load_widths(HEADS) == {"q": 8, "table": 16}
    assert ttgir.load_widths(HEADS.replace("1, 4]", "1, 8]")) == {"q": 16, "table": 32}


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_tiles_of_tma_that_are_under_way(ahead: int) -> None:
    copy = next(line for line in TMA.splitlines() if "async_tma_copy" in line)
    (loop,) = ttgir.main_loops(TMA.replace("    MORE\n", (copy + "\n") * (ahead - 1)))
    assert (loop.buffers, loop.wait, loop.loads[0].bytes) == (2, ahead - 1, 64 * 64)


@pytest.mark.parametrize(
    ("body", "cover"),
    [
        ((LOAD, WAIT, PRODUCT), 0),
        ((LOAD, PRODUCT, PRODUCT, WAIT), 2),
        ((WAIT, PRODUCT, LOAD), 0),
        ((PRODUCT, LOAD, PRODUCT, PRODUCT, "s_waitcnt lgkmcnt(0)", WAIT), 2),
        ((LOAD, LOAD, PRODUCT, "s_waitcnt vmcnt(1)", PRODUCT, WAIT), 1),
        ((LOAD, "global_load_dword v9, v[4:5], off", PRODUCT, WAIT), 1),
    ],
)
def test_products_between_a_load_and_the_wait_for_it(body: tuple[str, ...], cover: int) -> None:
    (loop,) = main_loops({"ttgir": AMD, "amdgcn": amd_assembly(*body)})
    assert (loop.cover, loop.buffers, loop.wait) == (cover, 1, None)
    assert loop.instructions["tensor"] == body.count(PRODUCT) and loop.instructions["control"] >= 2
    assert loop.tensor_flops == 2 * 16**3


def compiled(target: str, *names: str) -> dict[str, Artifact]:
    found = compile_for(target, [f"linear:{name}" for name in names], [str(CHAINED)], cases=["2048 tokens"])
    assert not any(result.error or result.refused for result in found), found
    return {artifact.impl: artifact for result in found for artifact in result.artifacts}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_gates_tell_a_loop_that_waits_from_one_that_overlaps(target: str) -> None:
    wrong = "unpipelined" if target == "gfx942" else "serial"
    found = compiled(target, wrong, "overlapped")
    (failure, *_) = failures = check_gates([found[wrong]])
    assert all("in loop 1 of 1" in each for each in failures) and (
        "0 matrix instructions between" in failure if target == "gfx942" else "0 loads under way" in failures[-1]
    )
    assert check_gates([found["overlapped"]]) == []
    (row,) = loop_rows([found["overlapped"]], OPS)
    assert row.loaded_bytes == 2 * 64 * 64 * 2 + 4 and row.tensor_flops == 2 * 64**3
    assert row.instructions == sum(found["overlapped"].loops[0].instructions.values()) and row.tensor > 0
    assert row.waves > 1


@pytest.mark.slow
def test_gates_count_the_tiles_of_tma() -> None:
    found = compiled("sm_90", "tma_serial", "tma_overlapped")
    assert [artifact.loops[0].wait for artifact in found.values()] == [0, 2]
    assert len(check_gates([found["tma_serial"]])) == 1 and check_gates([found["tma_overlapped"]]) == []
