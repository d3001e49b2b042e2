"""Turns of main loops, from Triton's IR and the arguments of a launch."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.lab.turns import loop_turns

KERNEL = """
  tt.func public @kernel(%x: !tt.ptr<bf16>, %lens: !tt.ptr<i32>, %K: i32) {
    %c0_i32 = arith.constant 0 : i32
    %c1_i32 = arith.constant 1 : i32
    %c63_i32 = arith.constant 63 : i32
    %c64_i32 = arith.constant 64 : i32
    %pid = tt.get_program_id x : i32
    %at = tt.addptr %lens, %pid : !tt.ptr<i32>, i32
    %len = tt.load %at : !tt.ptr<i32>
    %up = arith.addi BOUND, %c63_i32 : i32
    %last = arith.divsi %up, %c64_i32 : i32
    %out = scf.for %i = %c0_i32 to %last step %c1_i32 iter_args(%acc = %zero) -> (tensor<64xbf16>)  : i32 {
      %tile = tt.load %pointers : tensor<64x!tt.ptr<bf16>>
      scf.yield %tile : tensor<64xbf16>
    }
    tt.return
  }
"""


@pytest.mark.parametrize(
    ("bound", "turns"), [("%K", 16), ("%len", 3), ("%unknown", None)], ids=["an argument", "what memory holds", "unknown"]
)
def test_bounds_come_from_the_launch(bound: str, turns: int | None) -> None:
    arguments = {"K": 1000, "lens": torch.tensor([64, 1024, 129, 64], dtype=torch.int32)}
    assert loop_turns(KERNEL.replace("BOUND", bound), arguments, (5, 1, 1)) == [turns]
