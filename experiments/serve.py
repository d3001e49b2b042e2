"""Serve a workload, measure it, write the result.

    python experiments/serve.py                                          one run
    python experiments/serve.py -m workload.rate=4,16 kernels.sample=torch,triton     a sweep: every combination is a run
    python experiments/serve.py -m experiment=chunk_size                 a ready study
    python experiments/serve.py -m system=kernelswap,transformers        the transformers library on the same requests

Every run happens in a fresh process and leaves run.json, requests.csv and latency.png in its folder; a run that fails leaves
a run.json with its error. ``kernelswap collect FOLDER`` makes the table, ``kernelswap plot KIND FOLDER`` the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.study.compose import CONFIG_FILE, ServeConfig, hydra_version_base, register_schema, save_config, to_serve_config
from framework.study.environment import START_TIME, utc_now
from framework.study.results import RUN_FILE, config_columns, write_run

register_schema()

SHORT_WAITS = {"GOMP_SPINCOUNT": "1000"}
"""Threads of a CPU kernel that wait for one another go to sleep after a short spin. OpenMP's default is a long one, with which one
busy neighbour on the machine makes steps twice as long and more."""


def run_job(config: ServeConfig, folder: Path) -> bool:
    """Serves ``config`` in a process of its own that writes into ``folder``; True if it worked. A process that dies without a
    word (killed, out of memory) leaves a row too."""
    start_time = utc_now()
    save_config(config, folder / CONFIG_FILE)
    job = Path(__file__).with_name("serve_job.py")
    done = subprocess.run([sys.executable, str(job), str(folder)], env=SHORT_WAITS | os.environ)
    if not (folder / RUN_FILE).exists():
        error = f"the process ended with code {done.returncode} before it could write a result"
        write_run(folder, {**config_columns(config), START_TIME: start_time, "status": "failed", "error": error})
    return done.returncode == 0


def sweep_summary(folder: Path) -> str:
    """How the jobs of a sweep fared so far."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/{RUN_FILE}"))]
    num_failed = sum(row["status"] == "failed" for row in rows)
    return f"{len(rows)} runs in {folder}, {num_failed} failed; kernelswap collect {folder}"


@hydra.main(config_path="../conf", config_name="serve", **hydra_version_base())
def main(composed: DictConfig) -> None:
    """Composes one run's config and serves it."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    worked = run_job(to_serve_config(composed), folder)
    if job.mode == RunMode.MULTIRUN:
        print(sweep_summary(folder.parent), flush=True)
    elif not worked:
        sys.exit(1)


if __name__ == "__main__":
    main()
