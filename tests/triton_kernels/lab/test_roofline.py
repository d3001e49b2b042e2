"""Rooflines are the costs of an op over the ceilings of a device."""

from __future__ import annotations

import pytest

from triton_kernels.devices import DEVICE_MODELS
from triton_kernels.lab.roofline import Roofline, rooflines
from triton_kernels.ops import OPS


def of(op: str, case: str, device: str) -> Roofline:
    return next(found for found in rooflines(OPS[op], DEVICE_MODELS[device]) if found.case == case)


def test_one_token_is_bound_by_memory_and_many_by_arithmetic() -> None:
    one, many = of("linear", "1 token", "h200"), of("linear", "2048 tokens", "h200")
    assert one.least_s == one.memory_s == pytest.approx(2 * (6144 * 4096 + 4096 + 6144) / 4.3e12)
    assert many.least_s == many.arithmetic_s == pytest.approx(2 * 2048 * 6144 * 4096 / 780e12)


def test_a_format_without_units_has_no_time_for_arithmetic() -> None:
    assert of("gemm_fp8", "1 token", "a100").arithmetic_s is None
    assert of("gemm_int8", "1 token", "a100").arithmetic_s is not None


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_cases_to_draw(op: str) -> None:
    assert all(found.least_s > 0 for found in rooflines(OPS[op], DEVICE_MODELS["h200"]))
    assert rooflines(OPS[op], DEVICE_MODELS["h200"])
