"""The static model of time: each limit is what its unit needs, and the slowest is the cap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from triton_kernels.devices import DEVICE_MODELS
from triton_kernels.lab.aot import Artifact
from triton_kernels.lab.loops import LoopFigures
from triton_kernels.lab.time_model import Constants, Work, case_seconds, estimate, loop_estimate
from triton_kernels.op import Cost

H200 = DEVICE_MODELS["h200"]
CONSTANTS = Constants(4e-6, 1e-6, 2e-7, 1e-10, l2=2.0, memory=0.9, tensor=0.5, tensor_fp8=0.25)
WORK = Work(
    programs=132 * 5, turns=10, per_sm=2, flops=1e6, bytes=1e4, issues=100, ahead=2, peak=1e15, tensor=0.5, memory_bytes=4.3e6 * 0.9
)
"""Two full waves and one of a program each: three waves, five programs on every multiprocessor."""


def test_limits_are_what_each_unit_needs() -> None:
    found = estimate(WORK, H200, CONSTANTS)
    assert found.waves == 3
    assert found.limits["tensor"] == pytest.approx(132 * 5 * 10 * 1e6 / 0.5e15)
    assert found.limits["issue"] == pytest.approx(5 * 10 * 100 * 1e-10)
    assert found.limits["l2"] == pytest.approx(132 * 5 * 10 * 1e4 / 8.6e12)
    assert found.limits["wait"] == pytest.approx(3 * 10 * 2e-7 / 2)
    assert found.limits["memory"] == pytest.approx(1e-6)
    assert found.bound_by == "tensor" and found.cap == found.limits["tensor"]
    assert 7e-6 + found.cap < found.total < 7.1e-6 + found.cap + 1e-6


def test_one_program_more_than_fits_is_one_more_wave() -> None:
    def time(programs: int) -> float:
        return float(estimate(replace(WORK, programs=programs), H200, CONSTANTS).total)

    assert time(132 * 2) - time(132 * 2 - 50) < 1e-7
    assert time(132 * 2 + 1) - time(132 * 2) > 3e-6


def test_arrays_give_what_numbers_give() -> None:
    programs = np.array([1.0, 132.0, 700.0])
    many = estimate(replace(WORK, programs=programs, memory_bytes=programs * 1e4), H200, CONSTANTS).total
    single = [estimate(replace(WORK, programs=n, memory_bytes=n * 1e4), H200, CONSTANTS).total for n in programs]
    assert np.allclose(many, single)


def artifact(turns: int | None, loops: int = 1, matrix: str = "HGMMA") -> Artifact:
    loop = LoopFigures(
        {"tensor": 4, "alu": 16}, loaded_bytes=24576, buffers=3, wait=2, cover=None, tensor_flops=2 * 128 * 64 * 64, format="bf16"
    )
    return Artifact(
        op="linear",
        impl="mine",
        case="64 tokens",
        dtype="bfloat16",
        kernel="kernel",
        target="sm_90",
        triton="3.9.0",
        config="",
        num_warps=4,
        num_stages=3,
        shared_bytes=65536,
        registers=128,
        spills=0,
        matrix={matrix: 4},
        matrix_in_loop={matrix: 4},
        wide_loads=16,
        programs_per_sm=2,
        explicit_fusion=True,
        compile_s=0.1,
        loops=[loop] * loops,
        turns=[turns] * loops,
        programs=96,
    )


def test_turns_that_no_launch_tells_come_from_the_cost() -> None:
    cost = Cost(96 * 2 * 128 * 64 * 64 * 64, 1e6)
    assert loop_estimate(artifact(None), 0, cost) == loop_estimate(artifact(64), 0, cost)
    by_memory = Cost(1e3, 96 * 24576 * 10)
    assert loop_estimate(artifact(None), 0, by_memory) == loop_estimate(artifact(10), 0, by_memory)
    assert loop_estimate(artifact(None, loops=2), 1, cost) == loop_estimate(artifact(32, loops=2), 1, cost)
    search = replace(artifact(None).loops[0], tensor_flops=0, loaded_bytes=4)
    both = replace(artifact(None), loops=[search, *artifact(None).loops], turns=[None, None])
    assert loop_estimate(both, 0, cost).limits["wait"] < 1e-6
    assert loop_estimate(both, 1, cost) == loop_estimate(artifact(64), 0, cost)


def test_products_of_warps_are_slower_on_sm_90() -> None:
    cost = Cost(1e9, 1e6)
    slow, fast = (loop_estimate(artifact(64, matrix=family), 0, cost).limits["tensor"] for family in ("HMMA", "HGMMA"))
    assert slow == pytest.approx(fast / 0.62)


def test_kernels_of_a_case_add_up_and_loops_share_a_launch() -> None:
    cost = Cost(1e9, 1e6)
    one, two = case_seconds([artifact(64)], cost), case_seconds([artifact(64), artifact(64)], cost)
    assert two == pytest.approx(2 * one)
    assert one < case_seconds([artifact(64, loops=2)], cost) < two
