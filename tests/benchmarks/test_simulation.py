"""What a simulated token costs the host: the same for one, two and four times as many requests, behind a router too.

Run with ``pytest tests/benchmarks/test_simulation.py --benchmark-only``. A whole day of a trace over 64 engines:

    python experiments/serve.py model=llama-3-70b model.load_format=dummy executor=simulated parallel.tp=8 parallel.dp=64 \\
        router=least_loaded workload=azure workload.path=FILE workload.num_requests=null workload.repeat=24
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.build import build_replicas
from framework.config import EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig
from framework.engine.router import ROUTERS
from framework.study.driver import run_workload
from framework.study.workload import Workload, WorkloadConfig

SHAPE = yaml.safe_load((Path(__file__).parents[2] / "conf" / "model" / "llama-3-70b.yaml").read_text())["architecture"]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("repeat", [1, 2, 4])
@pytest.mark.parametrize("num_engines", [1, 16])
def test_cost_per_token(benchmark: Any, num_engines: int, repeat: int) -> None:
    config = EngineConfig(
        model=ModelConfig("llama-3-70b", load_format="dummy", architecture=SHAPE),
        executor=ExecutorConfig("simulated"),
        parallel=ParallelConfig(tp=8, dp=num_engines),
    )
    trace = WorkloadConfig(source="trace", format="azure", num_requests=500, repeat=repeat, arrivals="trace")
    workload = Workload(trace, SHAPE["vocab_size"], None)
    engines = build_replicas(config)
    record = benchmark.pedantic(run_workload, (engines, workload, ROUTERS["least_loaded"](0)), rounds=1)
    num_tokens = sum(len(request.token_times_s) for request in record.requests)
    benchmark.extra_info["us_per_token"] = benchmark.stats.stats.median / num_tokens * 1e6
