"""One serving run in this process: python experiments/serve_job.py FOLDER, where FOLDER holds the run's config.json.

Started by serve.py; run by hand, it repeats a run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import job_main
from experiments.made_up_adapters import load_adapters, made_up_adapters
from framework import __version__
from framework.build import build_replicas, freeze_garbage, input_processor
from framework.engine.inputs import InputProcessor
from framework.engine.kv_cache.spec import token_bytes
from framework.engine.metrics import EngineInfo
from framework.engine.router import ROUTERS
from framework.executor.kinds import EXECUTORS
from framework.models.read import read_model
from framework.replicated_engine import ReplicatedEngine
from framework.settling import settle_block_size
from framework.study.compose import CONFIG_FILE, ServeConfig, load_config
from framework.study.driver import run_workload
from framework.study.machine_load import machine_load
from framework.study.probed import probe
from framework.study.report import format_metrics, format_plan
from framework.study.served import Served, attempt, first_columns
from framework.study.time_shares import TimeShares
from framework.study.workload import Pictures, Workload, WorkloadRequest, warmup_workload


def serve(config: ServeConfig) -> Served:
    """Builds the system of the config and serves the workload."""
    config.validate()
    config.workload.validate()  # before a model is loaded for it
    with made_up_adapters(config) as config:
        return (_serve_with_engine(config) if config.system == "kernelswap" else _serve_with_library(config)).checked(config.system)


def _serve_with_engine(config: ServeConfig) -> Served:
    if config.parallel.num_engines > 1 and not EXECUTORS[config.executor.kind].virtual_clock:
        return _serve_with_processes(config)
    start = time.perf_counter()
    engines = build_replicas(config.engine())
    freeze_garbage()
    engine = engines[0]
    start_costs = {"load_s": time.perf_counter() - start, "kv_bytes_per_token_layer": token_bytes(engine.executor.groups)}
    if held := engine.executor.weight_bytes:
        nominal = engine.executor.nominal_weight_bytes
        start_costs |= {"weight_bytes": held, "nominal_weight_bytes": nominal}
        print(f"weights: {held / 1e6:.2f} MB, {nominal / 1e6:.2f} MB as their format says", flush=True)
    workload, warmup = _workloads(config, engine.executor.vocab_size, engine.executor.max_model_len, engine.inputs)
    for each in engines:
        load_adapters(each, config)
        run_workload([each], warmup)
    probed, shares = probe(engine, config), TimeShares.of(engine)
    start = time.perf_counter()
    with _compilations(config) as compiled, machine_load() as load:
        record = run_workload(engines, workload, ROUTERS[config.router](config.seed), progress=True)
    report = engine.plan_report()
    wall_s = f"{time.perf_counter() - start:.1f}"  # which under a virtual clock is no metric
    settled = {**_settled(engine.info()), "wall_s": wall_s}
    for each in engines:
        each.shutdown()
    further = {**start_costs, "num_late_compilations": len(compiled)} | (shares.metrics() if shares is not None else {})
    return Served(record, report, {"version": __version__, **settled}, further, load, probed)


def _serve_with_processes(config: ServeConfig) -> Served:
    """Of several engines, each in a process of its own: of their steps nothing is seen but what comes of them."""
    start = time.perf_counter()
    engine: Any = ReplicatedEngine(config.engine())
    try:
        freeze_garbage()
        info = engine.info()
        start_costs = {"load_s": time.perf_counter() - start, "kv_bytes_per_token_layer": token_bytes(info.groups)}
        if info.weight_bytes:
            start_costs["weight_bytes"] = info.weight_bytes * config.parallel.dp
        workload, warmup = _workloads(config, info.vocab_size, info.max_model_len, engine.inputs, config.parallel.dp)
        load_adapters(engine, config)
        run_workload([engine], warmup)
        start = time.perf_counter()
        with machine_load() as load:
            record = run_workload([engine], workload, progress=True)
        record.num_engines = config.parallel.dp
        report = engine.plan_report()
        settled = {**_settled(info), "wall_s": f"{time.perf_counter() - start:.1f}"}
    finally:
        engine.shutdown()
    return Served(record, report, {"version": __version__, **settled}, start_costs, load)


def _settled(info: EngineInfo) -> dict[str, str]:
    """What the engine decided where the config leaves it open."""
    shares = "on" if info.prefix_caching else "off"
    return {"block_size": str(info.block_size), "in_flight_steps": str(info.in_flight_steps), "prefix_caching": shares}


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
    workload, warmup = _workloads(config, library.vocab_size, library.max_model_len, inputs)
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
    config: ServeConfig, vocab_size: int, max_model_len: int, inputs: InputProcessor, num_engines: int = 1
) -> tuple[Sequence[WorkloadRequest], list[WorkloadRequest]]:
    """The requests to measure, and those before them that are not: as many for each of engines that share them."""
    if (count := config.workload.decoder_tokens) and inputs.encoding is None:
        raise ValueError(f"workload.decoder_tokens={count} cannot work: {config.model.name!r} has no encoder; leave it out")
    encode = inputs.tokenizer.encode if inputs.tokenizer else None
    workload: Sequence[WorkloadRequest] = Workload(
        config.workload, vocab_size, encode, Pictures.of(config.workload, inputs, max_model_len)
    )
    if not EXECUTORS[config.executor.kind].virtual_clock:
        workload = list(workload)  # while time is measured, none is to be made
    return workload, warmup_workload(config.num_warmup_requests * num_engines, config.seed, vocab_size, encode)


def _compilations(config: ServeConfig) -> AbstractContextManager[list[str]]:
    """Names of the kernels that are compiled inside; a run without a device has none, and needs no torch."""
    if not EXECUTORS[config.executor.kind].has_device:
        return nullcontext([])
    from framework.plan import count_compilations

    return count_compilations()


def run(folder: Path, schema: type[ServeConfig] = ServeConfig, serve: Callable[[Any], Served] = serve) -> bool:
    """Serves the config in ``folder``; True if it worked. Either way the folder holds a run.json afterwards."""
    config = load_config(folder / CONFIG_FILE, schema)
    row = first_columns(config)
    served = attempt(folder, row, lambda: serve(config.shifted()))
    if served is None:
        return False
    files = served.write(folder, config, row)
    ran = ", ".join([config.system, *(f"{name} {value}" for name, value in served.system.items())])
    plan = [format_plan(served.plan)] if served.plan and served.is_here else []  # no device, no kernels
    tables = [*plan, *(one.table() for one in served.probed), format_metrics(served.metrics(config))]
    print("\n\n".join([ran, *tables, f"{folder}: {', '.join(files)}"]), flush=True)
    return True


if __name__ == "__main__":
    job_main(run)
