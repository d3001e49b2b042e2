"""What a launch costs the host, with a driver that does nothing: Triton's share, the impl's arithmetic and its new outputs. What no
graph covers pays it per kernel. At most 6 microseconds per launch, in the quietest round: machines are shared.

Run with ``pytest tests/benchmarks/test_launch_cost.py --benchmark-only -o addopts=``; kernels are compiled on the first run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from triton_kernels.cases.serving import serving_cases
from triton_kernels.impl import Impl
from triton_kernels.lab import conformance
from triton_kernels.registry import Registry

from ..stub_driver import StubDriver, stub_driver

US_PER_LAUNCH = 6.0


@pytest.fixture
def stub() -> Iterator[StubDriver]:
    with stub_driver() as stub:
        yield stub


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Looks for kernels only where benchmarks are asked for: the search imports every impl."""
    found = [] if metafunc.config.getoption("benchmark_skip") else Registry.load()
    impls = [impl for impl in found if impl.is_triton and impl.origin.startswith("triton_kernels.")]
    metafunc.parametrize("impl", impls, ids=[f"{impl.op}:{impl.name}" for impl in impls])


def test_call(benchmark: Any, stub: StubDriver, impl: Impl) -> None:
    """One layer's call on the smallest serving case that the impl takes."""
    op, spec, args = Registry.load().ops[impl.op], None, {}
    for case in serving_cases(impl.op):
        args = case.make(torch.bfloat16)
        spec = replace(conformance.make_spec(op, args, torch.bfloat16, torch.device("cpu")), device="cuda", arch="sm_90")
        if not impl.unsupported(spec):
            break
    else:
        pytest.skip("takes none of the cases")
    bound = conformance.bind(op, impl, spec, args)
    given = [args[name] for name in op.call_args]
    conformance.call(op, bound, args)
    stub.launches = []
    bound(*given)
    num_launches, stub.launches = len(stub.launches), None
    benchmark.pedantic(bound, given, rounds=100, iterations=20, warmup_rounds=1)
    us_per_launch = benchmark.stats.stats.min * 1e6 / num_launches
    benchmark.extra_info.update(launches=num_launches, us_per_launch=us_per_launch)
    assert us_per_launch <= US_PER_LAUNCH
