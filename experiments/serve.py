"""Serve a workload, measure it, write the result.

    python experiments/serve.py                                          one run
    python experiments/serve.py -m workload.rate=4,16 kernels.sample=torch,triton     a sweep: every combination is a run
    python experiments/serve.py -m repeats=5 scheduler.max_num_batched_tokens=512,2048   every setting five times, in turn
    python experiments/serve.py -m repeats=auto primary_metric=tpot_p50_s scheduler.max_num_batched_tokens=512,2048
    python experiments/serve.py -m experiment=chunk_size                 a ready study
    python experiments/serve.py -m system=kernelswap,transformers        the transformers library on the same requests

Every run happens in a fresh process and leaves run.json, requests.csv and latency.png in its folder; a run that fails leaves
a run.json with its error. A sweep that was interrupted goes on with the same command. ``kernelswap collect FOLDER`` makes the
table, ``kernelswap plot KIND FOLDER`` the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import run_hydra_job
from framework.study.compose import ServeConfig, hydra_version_base, register_schema, to_config

register_schema()


@hydra.main(config_path="../conf", config_name="serve", **hydra_version_base())
def main(composed: DictConfig) -> float | None:
    """Composes one run's config and serves it."""
    return run_hydra_job(to_config(composed, ServeConfig), Path(__file__).with_name("serve_job.py"))


if __name__ == "__main__":
    main()
