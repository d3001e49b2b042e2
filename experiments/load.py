"""Ask a server over HTTP for a workload, measure it, write the result: what experiments/serve.py does with an engine in process.

    kernelswap serve tiny &
    python experiments/load.py                                           one run, on http://127.0.0.1:8000
    python experiments/load.py -m workload.rate=4,16 http.max_concurrency=null,8      a sweep: every combination is a run
    python experiments/load.py model=llama-3-8b http.url=http://HOST:8000 system=vllm    another server; its name in the table
    python experiments/load.py experiment=NAME                           the workload of a ready study

Any server of OpenAI's API is asked for the same requests at the same times, and rows have the same columns: ``kernelswap collect
FOLDER FOLDER --compare system=kernelswap`` puts them beside runs in process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import run_hydra_job
from framework.study.compose import LoadConfig, hydra_version_base, register_schema, to_config

register_schema()


@hydra.main(config_path="../conf", config_name="load", **hydra_version_base())
def main(composed: DictConfig) -> float | None:
    """Composes one run's config and asks for it."""
    return run_hydra_job(to_config(composed, LoadConfig), Path(__file__).with_name("load_job.py"))


if __name__ == "__main__":
    main()
