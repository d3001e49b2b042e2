"""Every impl that can run here on its op's benchmark cases, as pytest-benchmark tests.

Run with ``pytest tests/benchmarks/test_kernels.py --benchmark-only -o addopts=``, ``-k`` picks kernels. For ratios, ceilings and
captured graphs use ``kernelswap kernels bench``; this suite times eager calls and is there for pytest-benchmark's comparisons.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.lab import calls
from triton_kernels.lab.bench import CPU_MAX_FLOPS, Contender, Task, select_tasks
from triton_kernels.registry import Registry

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
CPU_MAX_BYTES = 1e8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Looks for kernels only where benchmarks are asked for: the search imports every impl."""
    found = [] if metafunc.config.getoption("benchmark_skip") else select_tasks(Registry.load())
    pairs = [(task, contender) for task in found if _small_enough(task) for contender in task.contenders]
    metafunc.parametrize(("task", "contender"), pairs, ids=[f"{t.op.name}:{c.label}-{t.case.name}" for t, c in pairs])


def _small_enough(task: Task) -> bool:
    cost = task.op.cost(task.case.dims, task.case.q_lens, task.case.ctx_lens)
    return DEVICE.type == "cuda" or (cost.flops <= CPU_MAX_FLOPS and cost.bytes <= CPU_MAX_BYTES)


def test_kernel(benchmark: Any, task: Task, contender: Contender) -> None:
    op, impl = task.op, contender.impl
    args = calls.make_args(op, task.case, DTYPE, DEVICE)
    spec = calls.make_spec(op, args, DTYPE, DEVICE)
    if reasons := impl.unsupported(spec, contender.choice.options):
        pytest.skip("; ".join(reasons))
    bound = calls.bind(op, impl, spec, args, contender.choice.options)

    def call() -> None:
        calls.call(op, bound, args)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=10, warmup_rounds=2)
    cost = op.cost(task.case.dims, task.case.q_lens, task.case.ctx_lens)
    benchmark.extra_info["gb_per_s"] = cost.bytes / benchmark.stats.stats.median / 1e9
    benchmark.extra_info["gflop_per_s"] = cost.flops / benchmark.stats.stats.median / 1e9
