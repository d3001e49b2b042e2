"""What launches cost the host, with a driver that does nothing: whatever no graph covers pays it per kernel. A launch alone takes
at most 6 microseconds, a call of an impl, with its arithmetic and its new outputs, at most 12 per kernel, both in the quietest
round: machines are shared.

Run with ``pytest tests/benchmarks/test_launch_cost.py --benchmark-only -o addopts=``; kernels are compiled on the first run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from triton_kernels.cases.serving import serving_cases
from triton_kernels.impl import Impl
from triton_kernels.impls._shared.launch import Launch
from triton_kernels.lab import calls
from triton_kernels.registry import Registry

from ..stub_driver import StubDriver, stub_driver

LAUNCH_US, CALL_US = 6.0, 12.0


@pytest.fixture
def stub() -> Iterator[StubDriver]:
    with stub_driver() as stub:
        yield stub


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Looks for kernels only where benchmarks are asked for: the search imports every impl."""
    if "impl" not in metafunc.fixturenames:
        return
    found = [] if metafunc.config.getoption("benchmark_skip") else Registry.load()
    impls = [impl for impl in found if impl.is_triton and impl.origin.startswith("triton_kernels.")]
    metafunc.parametrize("impl", impls, ids=[f"{impl.op}:{impl.name}" for impl in impls])


def bind(impl: Impl) -> tuple[Any, list[Any]]:
    """One layer's kernel and what a call gives it, on the smallest serving case that the impl takes, cut to a few rows: large new
    tensors cost more on a CPU than a GPU's allocator would take."""
    op = Registry.load().ops[impl.op]
    for case in sorted(serving_cases(impl.op), key=lambda case: case.batch.num_tokens):
        args = case.make(torch.bfloat16)
        spec = replace(calls.make_spec(op, args, torch.bfloat16, torch.device("cpu")), device="cuda", arch="sm_90")
        if not impl.unsupported(spec):
            bound = calls.bind(op, impl, spec, args)
            if op.row_args and "meta" not in args:
                args, _ = calls.take_rows(op, args, 0, min(8, args[op.row_args[0]].shape[0]))
            calls.call(op, bound, args)
            return bound, [args[name] for name in op.call_args]
    pytest.skip("takes none of the cases")


def test_call(benchmark: Any, stub: StubDriver, impl: Impl) -> None:
    bound, args = bind(impl)
    stub.launches = []
    bound(*args)
    num_launches, stub.launches = len(stub.launches), None
    benchmark.pedantic(bound, args, rounds=500, iterations=20, warmup_rounds=1)
    us_per_launch = benchmark.stats.stats.min * 1e6 / num_launches
    benchmark.extra_info.update(launches=num_launches, us_per_launch=us_per_launch)
    assert us_per_launch <= CALL_US


@triton.jit
def _kernel(p0, p1, p2, p3, p4, n0, n1, n2, n3, n4, n5, n6, n7, n8, BLOCK: tl.constexpr):
    tl.store(p0 + tl.arange(0, BLOCK), n0)


def test_launch_of_14_arguments(benchmark: Any, stub: StubDriver) -> None:
    launch = Launch(_kernel, BLOCK=16, num_warps=1, enable_fp_fusion=True)
    args = ((1,), *(torch.empty(16) for _ in range(5)), *[16] * 9)
    launch(*args)
    benchmark.pedantic(launch, args, rounds=500, iterations=20, warmup_rounds=1)
    assert benchmark.stats.stats.min * 1e6 <= LAUNCH_US
