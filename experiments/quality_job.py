"""One measurement of quality in this process: python experiments/quality_job.py FOLDER, where FOLDER holds the run's config.json.

Started by quality.py; run by hand, it repeats a run.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import job_main
from framework.build import input_processor
from framework.config import EngineConfig
from framework.interpreter import enable_interpreter
from framework.models.read import read_model
from framework.settling import settle_block_size, settle_quantization
from framework.study.compose import CONFIG_FILE, QualityConfig, load_config
from framework.study.environment import environment
from framework.study.quality import cut_windows, quality_metrics, read_text
from framework.study.report import format_plan, format_quality
from framework.study.results import RUN_FILE, plan_columns, write_run
from framework.study.served import attempt, first_columns
from framework.worker.teacher_forcing import TeacherForcing, score


@dataclass(frozen=True)
class Measured:
    """The metrics of a run that worked, and which kernel ran per op."""

    metrics: dict[str, float]
    plan: dict[str, dict[str, Any]]


def measure(config: QualityConfig) -> Measured:
    """Runs the model of the config beside its baseline."""
    config.validate()
    if config.interpret:
        enable_interpreter()  # before anything imports Triton, as tokenizers do
    info = read_model(config.model)
    if config.baseline.model is None and info.quantization is not None:
        raise ValueError(f"model {config.model.name!r} is quantized: name the checkpoint it was made from with baseline.model")
    tokenizer = input_processor(config.model, info).tokenizer
    if tokenizer is None:
        raise ValueError(f"model {config.model.name!r} has no tokenizer, which quality over a text needs: set model.tokenizer")
    source, text = read_text(config.text)
    windows = cut_windows(text, tokenizer, config.window_tokens, config.num_windows, source)
    start = time.perf_counter()
    candidate, baseline = (_open(engine, config) for engine in (config.engine(), config.baseline_engine()))
    load_s = time.perf_counter() - start
    scores = score(candidate, baseline, windows.token_ids, config.batch_windows)
    metrics = quality_metrics(scores.kl, scores.nats, scores.baseline_nats, scores.agrees, windows.num_bytes)
    found = {"weight_bytes": candidate.weight_bytes, "load_s": load_s, "duration_s": time.perf_counter() - start - load_s}
    return Measured({**metrics, **found}, candidate.plan_report())


def _open(engine: EngineConfig, config: QualityConfig) -> TeacherForcing:
    engine = settle_quantization(settle_block_size(engine))
    return TeacherForcing(engine, read_model(engine.model), config.window_tokens, config.chunk_tokens, config.batch_windows)


def run(folder: Path) -> bool:
    """Measures the config in ``folder``; True if it worked. Either way the folder holds a run.json afterwards."""
    config = load_config(folder / CONFIG_FILE, QualityConfig)
    row = first_columns(config)
    measured = attempt(folder, row, lambda: measure(config))
    if measured is None:
        return False
    row |= plan_columns(measured.plan) | {f"metric.{name}": value for name, value in measured.metrics.items()} | environment(config)
    write_run(folder, {**row, "status": "ok", "error": None})
    print("\n\n".join([format_plan(measured.plan), format_quality(measured.metrics), f"{folder}: {RUN_FILE}"]), flush=True)
    return True


if __name__ == "__main__":
    job_main(run)
