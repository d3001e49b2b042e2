"""One serving run in this process: python experiments/serve_job.py FOLDER, where FOLDER holds the run's config.json.

Started by serve.py; run by hand, it repeats a run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import attempt, first_columns, job_main
from framework import __version__
from framework.build import build_replicas, freeze_garbage, input_processor, settle_block_size
from framework.engine.inputs import InputProcessor
from framework.engine.router import ROUTERS
from framework.executor.kinds import EXECUTORS
from framework.models.architecture import read_model
from framework.study.compose import CONFIG_FILE, ServeConfig, load_config
from framework.study.driver import run_workload
from framework.study.environment import environment
from framework.study.machine_load import machine_load
from framework.study.metrics import compute_metrics
from framework.study.probed import Probed, probe
from framework.study.records import RunRecord
from framework.study.report import format_metrics, format_plan
from framework.study.results import REQUESTS_FILE, RUN_FILE, plan_columns, write_requests, write_run
from framework.study.workload import Workload, WorkloadConfig, WorkloadRequest, build_workload

PLOT_FILE = "latency.png"


@dataclass(frozen=True)
class Served:
    """A run that worked.

    record  what came when
    plan    which kernel of ours ran per op; empty for another system
    system  what served: its version and what it settled by itself; for another system how it served
    start   what the start cost: seconds to build, and kernels that were compiled only while the workload ran
    load    what else the machine did while the workload ran
    probed  what else was asked for, to be written into the run's folder
    """

    record: RunRecord
    plan: dict[str, dict[str, Any]]
    system: dict[str, str]
    start: dict[str, float]
    load: dict[str, float]
    probed: list[Probed] = field(default_factory=list)


def serve(config: ServeConfig) -> Served:
    """Builds the system of the config and serves the workload."""
    config.validate()
    config.workload.validate()  # before a model is loaded for it
    served = _serve_with_engine(config) if config.system == "kernelswap" else _serve_with_library(config)
    requests = served.record.requests
    if all(request.error for request in requests):
        raise ValueError(f"{config.system} refused every request; the first because: {requests[0].error}")
    return served


def _serve_with_engine(config: ServeConfig) -> Served:
    start = time.perf_counter()
    engines = build_replicas(config.engine())
    freeze_garbage()
    start_costs = {"load_s": time.perf_counter() - start}
    engine = engines[0]
    if held := engine.executor.weight_bytes:
        nominal = engine.executor.nominal_weight_bytes
        start_costs |= {"weight_bytes": held, "nominal_weight_bytes": nominal}
        print(f"weights: {held / 1e6:.2f} MB, {nominal / 1e6:.2f} MB as their format says", flush=True)
    workload, warmup = _workloads(config, engine.executor.vocab_size, engine.inputs)
    for each in engines:
        run_workload([each], warmup)
    probed = probe(engine, config)
    start = time.perf_counter()
    with _compilations(config) as compiled, machine_load() as load:
        record = run_workload(engines, workload, ROUTERS[config.router](config.seed), progress=True)
    report = engine.plan_report()
    wall_s = f"{time.perf_counter() - start:.1f}"  # which under a virtual clock is no metric
    settled = {"block_size": str(engine.config.cache.block_size), "in_flight_steps": str(engine.in_flight_steps), "wall_s": wall_s}
    for each in engines:
        each.shutdown()
    start_costs["num_late_compilations"] = len(compiled)
    return Served(record, report, {"version": __version__, **settled}, start_costs, load, probed)


def _serve_with_library(config: ServeConfig) -> Served:
    from transformers import __version__ as version  # seconds to import, and not needed to serve with our engine

    from experiments.peers.serving import open_mode, serve_workload
    from experiments.peers.transformers_library import Library

    config = settle_block_size(config)
    start = time.perf_counter()
    info = read_model(config.model)
    library = Library.load(config.engine(), info)
    inputs = input_processor(config.model, info)
    load_s = time.perf_counter() - start
    workload, warmup = _workloads(config, library.vocab_size, inputs)
    start = time.perf_counter()
    mode = open_mode(library, config, [*workload, *warmup], inputs.eos_token_ids)
    try:
        freeze_garbage()
        load_s += time.perf_counter() - start
        serve_workload(mode, library, warmup)
        with machine_load() as load:
            record = serve_workload(mode, library, workload, progress=True)
        ran = {"version": version, "mode": mode.mode, "attention": library.attention}
    finally:
        mode.close()
    return Served(record, {}, ran, {"load_s": load_s}, load)


def _workloads(
    config: ServeConfig, vocab_size: int, inputs: InputProcessor
) -> tuple[Sequence[WorkloadRequest], list[WorkloadRequest]]:
    """The requests to measure, and those before them that are not."""
    encode = inputs.tokenizer.encode if inputs.tokenizer else None
    workload: Sequence[WorkloadRequest] = Workload(config.workload, vocab_size, encode)
    if not EXECUTORS[config.executor.kind].virtual_clock:
        workload = list(workload)  # while time is measured, none is to be made
    if not config.num_warmup_requests:
        return workload, []
    # Random tokens: prompts of the workload itself would be found in the prefix cache afterwards.
    warmup = WorkloadConfig(num_requests=config.num_warmup_requests, prompt_tokens=64, output_tokens=8, seed=config.seed + 1)
    return workload, build_workload(warmup, vocab_size, encode)


def _compilations(config: ServeConfig) -> AbstractContextManager[list[str]]:
    """Names of the kernels that are compiled inside; a run without a device has none, and needs no torch."""
    if not EXECUTORS[config.executor.kind].has_device:
        return nullcontext([])
    from framework.plan import count_compilations

    return count_compilations()


def run(folder: Path) -> bool:
    """Serves the config in ``folder``; True if it worked. Either way the folder holds a run.json afterwards."""
    config = load_config(folder / CONFIG_FILE, ServeConfig)
    row = first_columns(config)
    served = attempt(folder, row, lambda: serve(config.shifted()))
    if served is None:
        return False
    metrics = {**compute_metrics(served.record, config.slo), **served.start}
    write_requests(folder, served.record.requests)
    row |= {"plan.system": config.system} | {f"plan.system.{name}": value for name, value in served.system.items()}
    row |= plan_columns(served.plan) | {f"metric.{name}": value for name, value in metrics.items()} | environment(config)
    row |= served.load
    write_run(folder, {**row, "status": "ok", "error": None})
    _plot(folder)
    files = [RUN_FILE, REQUESTS_FILE, PLOT_FILE, *(name for one in served.probed for name in one.write(folder))]
    ran = ", ".join([config.system, *(f"{name} {value}" for name, value in served.system.items())])
    plan = [format_plan(served.plan)] if served.plan else []  # no device, no kernels
    tables = [*plan, *(one.table() for one in served.probed), format_metrics(metrics)]
    print("\n\n".join([ran, *tables, f"{folder}: {', '.join(files)}"]), flush=True)
    return True


def _plot(folder: Path) -> None:
    from framework.study import plots
    from framework.study.results import collect, collect_requests

    runs = collect(folder)
    plots.latency(collect_requests(folder, runs)).savefig(folder / PLOT_FILE, dpi=150)


if __name__ == "__main__":
    job_main(run)
