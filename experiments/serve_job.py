"""One serving run in this process: python experiments/serve_job.py FOLDER, where FOLDER holds the run's config.json.

Started by serve.py, so that nothing of one run (memory, caches, compiled code, threads) reaches the next. Run by hand, it
repeats a run.
"""

from __future__ import annotations

import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.build import build_engine, freeze_garbage
from framework.clock import VirtualClock, WallClock
from framework.compose import CONFIG_FILE, ServeConfig, load_config
from framework.driver import RunRecord, run_workload
from framework.environment import environment
from framework.metrics import compute_metrics
from framework.report import format_metrics, format_plan
from framework.results import REQUESTS_FILE, RUN_FILE, config_columns, plan_columns, write_requests, write_run
from framework.workload import WorkloadConfig, build_workload

PLOT_FILE = "latency.png"


def serve(config: ServeConfig) -> tuple[RunRecord, dict[str, dict[str, Any]], dict[str, float]]:
    """Builds the engine and serves the workload. Returns the record, what ran, and what the start cost: seconds to build, and
    kernels that were compiled only while the workload ran."""
    clock = VirtualClock() if config.executor.kind == "simulated" else WallClock()
    start = time.perf_counter()
    engine = build_engine(config.engine(), clock)
    freeze_garbage()
    load_s = time.perf_counter() - start
    encode = engine.inputs.tokenizer.encode if engine.inputs.tokenizer else None
    workload = build_workload(config.workload, engine.executor.vocab_size, encode)
    if config.num_warmup_requests:
        # Random tokens: prompts of the workload itself would be found in the prefix cache afterwards.
        warmup = WorkloadConfig(num_requests=config.num_warmup_requests, prompt_tokens=64, output_tokens=8, seed=config.seed + 1)
        run_workload(engine, build_workload(warmup, engine.executor.vocab_size, encode), clock)
    with _compilations(config) as compiled:
        record = run_workload(engine, workload, clock, progress=True)
    report = engine.plan_report()
    engine.shutdown()
    if all(request.error for request in record.requests):
        raise ValueError(f"the engine refused every request; the first because: {record.requests[0].error}")
    return record, report, {"load_s": load_s, "num_late_compilations": len(compiled)}


def _compilations(config: ServeConfig) -> AbstractContextManager[list[str]]:
    """Names of the kernels that are compiled inside; a run without a device has none, and needs no torch."""
    if config.executor.kind != "local":
        return nullcontext([])
    from framework.plan import count_compilations

    return count_compilations()


def run(folder: Path) -> bool:
    """Serves the config in ``folder``; True if it worked. Either way the folder holds a run.json afterwards."""
    config = load_config(folder / CONFIG_FILE)
    row = config_columns(config)
    try:
        record, report, start = serve(config)
    except Exception as error:
        print(f"error: {error}" if isinstance(error, ValueError) else traceback.format_exc(), file=sys.stderr)
        write_run(folder, {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"})
        return False
    metrics = {**compute_metrics(record, config.slo), **start}
    write_requests(folder, record.requests)
    columns = {f"metric.{name}": value for name, value in metrics.items()}
    write_run(folder, {**row, **plan_columns(report), **columns, **environment(config), "status": "ok", "error": None})
    _plot(folder)
    shown = [format_plan(report)] if report else []  # no device, no kernels
    print("\n\n".join([*shown, format_metrics(metrics), f"{folder}: {RUN_FILE}, {REQUESTS_FILE}, {PLOT_FILE}"]), flush=True)
    return True


def _plot(folder: Path) -> None:
    from framework import plots
    from framework.results import collect, collect_requests

    runs = collect(folder)
    plots.latency(collect_requests(folder, runs)).savefig(folder / PLOT_FILE, dpi=150)


if __name__ == "__main__":
    sys.exit(0 if run(Path(sys.argv[1])) else 1)
