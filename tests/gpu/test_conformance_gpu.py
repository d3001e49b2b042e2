"""Every impl keeps its contract on a GPU: on the small cases, and at the sizes of serving."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.impl import Impl
from triton_kernels.lab.conformance import check
from triton_kernels.op import Case
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

pytestmark = pytest.mark.gpu
NUM_RERUNS = 20
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
OWN = [i for i in Registry.load() if i.origin.startswith("triton_kernels.impls.") and "cuda" in i.devices]
LARGE = [pytest.param(i, case, id=f"{i.op}-{i.name}-{case.name}") for i in OWN for case in OPS[i.op].cases if "bench" in case.tags]


@DTYPES
@pytest.mark.parametrize("found", OWN, ids=lambda i: f"{i.op}-{i.name}")
def test_small_cases(found: Impl, dtype: torch.dtype) -> None:
    """A kernel that fails on one case is still tried on the others."""
    cases = [case for case in OPS[found.op].cases if "bench" not in case.tags]
    results = [check(OPS[found.op], found, case, dtype, "cuda", num_reruns=NUM_RERUNS) for case in cases]
    if all(result.skipped for result in results):
        pytest.skip(results[0].message)
    assert not [f"{result.case}: {result.message}" for result in results if not result.ok]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("found", "case"), LARGE)
def test_cases_of_serving(found: Impl, case: Case, dtype: torch.dtype) -> None:
    result = check(OPS[found.op], found, case, dtype, "cuda", num_reruns=NUM_RERUNS)
    if result.skipped:
        pytest.skip(result.message)
    assert result.ok, result.message
