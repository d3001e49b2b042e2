"""The Triton collectives with ranks as threads: each phase between two barriers is a launch, on memory that all ranks share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.group import SoloGroup
from triton_kernels.impls._shared.rank_sums import rounded, tree_sum
from triton_kernels.lab.conformance import relative_error
from triton_kernels.ops import OPS

from ...thread_ranks import run_ranks
from ..ranks import call_as, partials

RANKS = (2, 3, 7, 8)
ONE_SHOT, TWO_SHOT = {"block": 32, "programs": 2}, {"block": 32, "programs": 2, "one_shot_kib": 0}
FUSED = "all_reduce_add_rms_norm"


def reduced(options: dict[str, Any], parts: list[torch.Tensor], bound: dict[str, Any]) -> list[torch.Tensor]:
    return run_ranks(len(parts), lambda group: call_as("all_reduce", "triton", group, [parts[group.rank]], bound, options, True))


@pytest.mark.parametrize("options", [ONE_SHOT, TWO_SHOT], ids=["one_shot", "two_shot"])
@pytest.mark.parametrize("size", RANKS)
def test_a_sum_has_the_bits_of_the_tree_on_every_rank(size: int, options: dict[str, Any]) -> None:
    """Several turns of several programs, the last tile not full."""
    parts, bias = partials(size, size, 131), torch.randn(131)
    results = reduced(options, parts, {"bias": bias, "out_dtype": torch.float16})
    assert all(torch.equal(result, rounded(tree_sum(parts), bias, torch.float16)) for result in results)
    assert relative_error(results[0], torch.stack(parts).double().sum(0) + bias.double()) < 3e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounded_summands_are_added_in_float32(dtype: torch.dtype) -> None:
    parts = partials(3, 5, 40, dtype)
    for options in (ONE_SHOT, TWO_SHOT):
        expected = torch.stack(parts).double().sum(0)
        assert all(relative_error(result, expected) < 4e-3 for result in reduced(options, parts, {}))
        wide = reduced(options, parts, {"out_dtype": torch.float32})  # wider than x: one shot in any case
        assert all(torch.equal(result, tree_sum(parts)) for result in wide)


def test_calls_of_all_sizes_share_memory() -> None:
    """Later calls find what earlier ones left there; the largest makes a new piece."""
    sizes = (1, 5, 0, 3)

    def work(group: Any) -> list[torch.Tensor]:
        return [
            call_as("all_reduce", "triton", group, [partials(3, rows, 70, seed=rows)[group.rank]], {}, options, True)
            for rows in sizes
            for options in (ONE_SHOT, TWO_SHOT)
        ]

    for results in run_ranks(3, work):
        expected = [tree_sum(partials(3, rows, 70, seed=rows)) for rows in sizes for _ in range(2)]
        assert all(map(torch.equal, results, expected))


def test_a_row_has_the_same_bits_in_messages_of_any_size() -> None:
    """Small messages take one shot, large ones two."""
    whole = partials(3, 2048, 72)

    def work(group: Any) -> list[torch.Tensor]:
        mine = whole[group.rank]
        return [call_as("all_reduce", "triton", group, [mine[:rows].clone()], {}, None, True) for rows in (1, 7, 1664, 2048)]

    expected = tree_sum(whole)
    for results in run_ranks(3, work):
        assert all(torch.equal(result, expected[: len(result)]) for result in results)


def test_a_row_of_the_fused_norm_has_the_same_bits_in_messages_of_any_size() -> None:
    whole, residual, bound = partials(2, 130, 20), torch.randn(130, 20), {"weight": torch.randn(20), "eps": 1e-5}

    def work(group: Any) -> list[torch.Tensor]:
        calls = [[x[:rows].clone() for x in (whole[group.rank], residual)] for rows in (1, 7, 130)]
        return [call_as(FUSED, "triton", group, tensors, bound, None, True) for tensors in calls]

    for *few, all_rows in run_ranks(2, work):
        assert all(torch.equal(result, all_rows[: len(result)]) for result in few)


@pytest.mark.parametrize("size", [2, 3])
def test_the_fused_norm_is_a_sum_and_a_norm(size: int) -> None:
    parts, bias = partials(size, 66, 20), torch.randn(20)
    weight, residual = torch.randn(20), torch.randn(66, 20)
    bound = {"weight": weight, "bias": bias, "eps": 1e-5, "offset": 1.0}

    def work(group: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mine = residual.clone()
        return call_as(FUSED, "triton", group, [parts[group.rank], mine], bound, None, True), mine

    expected_residual = residual.double()
    total = torch.stack([part.double() for part in parts]).sum(0)
    expected = OPS[FUSED].reference(total, expected_residual, SoloGroup(), weight, 1e-5, 1.0, bias)
    results = run_ranks(size, work)
    for out, summed in results:
        assert relative_error(out, expected) < 1e-6 and relative_error(summed, expected_residual) < 1e-6
        assert torch.equal(out, results[0][0]) and torch.equal(summed, results[0][1])
