"""Elements 2^31 and more from a tensor's start: numpy's 32-bit integers overflow as a GPU's do."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.impl import Impl
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

from ...gpu import offsets

CPU = torch.device("cpu")
TRITON = [i for i in Registry.load() if i.is_triton and i.origin.startswith("triton_kernels.") and i.requires == ("triton",)]
ATTENTION = [i for i in TRITON if i.op.startswith("paged_attention_")]
CACHE = [i for i in TRITON if i.op in ("kv_cache_write", "qk_norm_rotary_kv_write", "copy_blocks")]
ROWS = [
    i
    for i in TRITON
    if offsets.far_case(OPS[i.op]) and not (i.op.startswith("gemm_") and i.name == "triton_invariant")  # one tile has all rows
]


def name(found: Impl) -> str:
    return f"{found.op}-{found.name}"


@pytest.mark.parametrize("found", ATTENTION, ids=name)
def test_attention_reads_both_ends_of_a_cache(found: Impl) -> None:
    assert not offsets.check_attention(found.op, found, torch.float16, CPU, interpret=True)


@pytest.mark.parametrize("found", CACHE, ids=name)
def test_both_ends_of_a_cache_are_written(found: Impl) -> None:
    assert not offsets.check_cache_op(found.op, found, torch.float16, CPU, interpret=True)


@pytest.mark.parametrize("found", [i for i in TRITON if i.op == "embedding"], ids=name)
def test_both_ends_of_a_table_are_read(found: Impl) -> None:
    offsets.check_embedding(found, torch.float16, CPU, interpret=True)


@pytest.mark.parametrize("found", ROWS, ids=name)
def test_rows_may_lie_far_apart(found: Impl) -> None:
    refused = offsets.check_far_rows(OPS[found.op], found, torch.float16, CPU, interpret=True)
    if refused:
        pytest.skip(refused)
