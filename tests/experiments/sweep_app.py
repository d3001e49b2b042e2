"""A study whose jobs take no time: the sweeps of experiments/serve.py with a row made up instead of a run. Started by tests.

TPOT is 10 ms, 3 % more with 64 tokens per step, with noise of 1 %; goodput grows with the tokens. A job with 13 requests fails.
INTERRUPT_AT=N in the environment ends the sweep as Ctrl-C does, in job N.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import numpy as np
from omegaconf import DictConfig

from experiments import jobs
from framework.study.compose import CONFIG_FILE, ServeConfig, hydra_version_base, load_config, register_schema, to_config
from framework.study.results import write_run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))  # where Hydra finds the sweeper, as it does for a script there
register_schema()


def pretend(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    """In place of ``subprocess.run``: the row of a job."""
    folder = Path(command[2])
    if folder.name == os.environ.get("INTERRUPT_AT"):
        raise KeyboardInterrupt
    config = load_config(folder / CONFIG_FILE, ServeConfig)
    row = jobs.first_columns(config)
    if config.workload.num_requests == 13:
        write_run(folder, row | {"status": "failed", "error": "ValueError: thirteen"})
        return subprocess.CompletedProcess(command, 1)
    tokens, shifted = config.scheduler.max_num_batched_tokens, config.shifted()
    noise = np.random.default_rng([shifted.seed, tokens]).lognormal(0, 0.01)
    metrics = {"metric.tpot_p50_s": 0.01 * (1.03 if tokens == 64 else 1.0) * noise, "metric.goodput_per_s": tokens / 64}
    write_run(folder, row | metrics | {"status": "ok", "error": None})
    return subprocess.CompletedProcess(command, 0)


@hydra.main(config_path=str(ROOT / "conf"), config_name="serve", **hydra_version_base())
def main(composed: DictConfig) -> float | None:
    with mock.patch.object(jobs.subprocess, "run", pretend):
        return jobs.run_hydra_job(to_config(composed, ServeConfig), Path("unused"))


if __name__ == "__main__":
    main()
