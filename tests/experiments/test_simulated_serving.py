"""Serving runs under a virtual clock: an 8B model on a GPU that is not there."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.serve_job import run, serve
from framework.config import ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.study.compose import CONFIG_FILE, ServeConfig, save_config
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.workload import WorkloadConfig


def shape(name: str) -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parents[2] / "conf" / "model" / f"{name}.yaml").read_text())["architecture"]


def simulated(workload: WorkloadConfig, max_num_batched_tokens: int = 2048, model: str = "llama-3-8b") -> ServeConfig:
    return ServeConfig(
        model=ModelConfig(model, load_format="dummy", architecture=shape(model)),
        executor=ExecutorConfig(kind="simulated"),
        scheduler=SchedulerConfig(max_num_batched_tokens=max_num_batched_tokens),
        workload=workload,
        num_warmup_requests=0,
    )


def metrics(config: ServeConfig) -> dict[str, float]:
    record = serve(config).record
    return compute_metrics(record, config.slo)


def test_the_token_budget_trades_first_tokens_against_gaps() -> None:
    workload = WorkloadConfig(num_requests=60, prompt_tokens=2000, prompt_spread=0.8, output_tokens=64, rate=6)
    start = time.perf_counter()
    small, large, again = (metrics(simulated(workload, budget)) for budget in (128, 4096, 4096))
    # 10 s of requests: the clock was not the wall's.
    assert small["duration_s"] > 9.9 > time.perf_counter() - start
    assert large == again
    assert small["num_chunked_prefills"] > large["num_chunked_prefills"]
    assert small["ttft_p50_s"] > 1.5 * large["ttft_p50_s"]
    assert small["itl_p99_s"] < 0.5 * large["itl_p99_s"]


@pytest.mark.parametrize(
    ("model", "snapshots", "said"),
    [("mamba-2.8b", 0, "off"), ("jamba-v0.1", 0, "off"), ("jamba-v0.1", 4, "on"), ("t5-small", 0, "off"), ("llama-3-8b", 0, "on")],
)
def test_a_row_says_whether_prefixes_were_shared(model: str, snapshots: int, said: str, tmp_path: Path) -> None:
    """Where the config leaves that to the model."""
    workload = WorkloadConfig(num_requests=2, prompt_tokens=40, output_tokens=2)
    config = simulated(workload, model=model)
    config.cache.state_snapshots = snapshots
    config.parallel.tp = 2 if model == "jamba-v0.1" else 1  # 104 GB of weights
    save_config(config, tmp_path / CONFIG_FILE)
    assert run(tmp_path), (tmp_path / "run.json").read_text()
    row = json.loads((tmp_path / "run.json").read_text())
    assert (row["plan.system.prefix_caching"], row["cache.prefix_caching"]) == (said, None)


def test_load_lengthens_the_queue() -> None:
    workload = WorkloadConfig(num_requests=60, prompt_tokens=2000, output_tokens=32, rate=2)
    calm, busy = (metrics(simulated(replace(workload, rate=rate))) for rate in (2, 40))
    assert busy["ttft_p99_s"] > 2 * calm["ttft_p99_s"]
    assert busy["requests_per_s"] > 2 * calm["requests_per_s"]


def test_a_trace_with_shared_prefixes_runs_from_file_to_files(tmp_path: Path) -> None:
    rows = [{"timestamp": 300 * i, "input_length": 1300 + i, "output_length": 8, "hash_ids": [0, 1, 100 + i]} for i in range(12)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload = WorkloadConfig(source="trace", path=str(trace), arrivals="trace")
    save_config(simulated(workload), tmp_path / CONFIG_FILE)
    assert run(tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    assert (row["metric.num_prompt_tokens"], row["metric.num_output_tokens"]) == (sum(1300 + i for i in range(12)), 12 * 8)
    # Eleven of twelve find two blocks of 512 tokens.
    assert row["metric.prefix_hit_rate"] == pytest.approx(11 * 1024 / row["metric.num_prompt_tokens"], rel=0.01)
    assert row["metric.duration_s"] >= 11 * 0.3
    assert row["env.device"] == "simulated h200"


def test_in_overload_the_policy_decides_who_is_late() -> None:
    workload = WorkloadConfig(num_requests=200, prompt_tokens=500, output_tokens=200, output_spread=0.9, rate=30, num_priorities=2)

    def under(policy: str) -> dict[str, float]:
        scheduler = SchedulerConfig(policy, max_num_seqs=16, ttft_slo_s=1.0)
        return metrics(replace(simulated(workload), scheduler=scheduler, slo=SLOConfig(ttft_s=1.0)))

    fcfs, priority, sjf, slo = map(under, ("fcfs", "priority", "sjf", "slo"))
    assert fcfs["ttft_mean_s"] > 3, "it is overload"
    assert sjf["ttft_mean_s"] < 0.75 * fcfs["ttft_mean_s"]
    assert slo["goodput_per_s"] > 2 * fcfs["goodput_per_s"]
    assert priority["ttft_priority_0_mean_s"] < 0.5 * fcfs["ttft_priority_0_mean_s"]
    assert priority["ttft_priority_1_mean_s"] > fcfs["ttft_priority_1_mean_s"]
    assert len({run["num_output_tokens"] for run in (fcfs, priority, sjf, slo)}) == 1


def test_streams_of_a_pipeline_take_no_longer_than_one_while_its_stages_have_room() -> None:
    """They come one after the other, and fall into as many groups as there are stages: a group too many waits for a stage."""

    def gap_s(num_requests: int) -> float:
        workload = WorkloadConfig(num_requests=num_requests, prompt_tokens=100, output_tokens=300, output_spread=0, rate=10)
        return metrics(replace(simulated(workload), parallel=ParallelConfig(tp=2, pp=2)))["itl_p50_s"]

    assert gap_s(6) < 1.1 * gap_s(1)


@pytest.mark.parametrize(("model", "tp", "layers"), [("deepseek-v3", 16, 61), ("deepseek-v2-lite", 1, 27)])
def test_a_run_tells_what_a_token_takes_in_the_cache_of_a_layer(model: str, tp: int, layers: int, tmp_path: Path) -> None:
    workload = WorkloadConfig(num_requests=4, prompt_tokens=200, output_tokens=8, rate=10)
    config = replace(simulated(workload, model=model), parallel=ParallelConfig(tp=tp))
    save_config(config, tmp_path / CONFIG_FILE)
    assert run(tmp_path)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["metric.kv_bytes_per_token_layer"] == 1152 and found["metric.num_failed"] == 0
    assert found["model.architecture.num_hidden_layers"] == layers
