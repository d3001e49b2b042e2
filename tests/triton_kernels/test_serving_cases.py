"""Serving cases are calls that their op takes."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.cases.serving import serving_cases
from triton_kernels.registry import Registry


@pytest.mark.parametrize("op", Registry.load().ops)
def test_they_give_all_parameters_of_their_op(op: str) -> None:
    for case in serving_cases(op):
        found = Registry.load().ops[op]
        assert {*found.defaults, *case.make(torch.bfloat16)} == set(found.parameters), case.name
