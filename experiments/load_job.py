"""One run of load on a server: python experiments/load_job.py FOLDER, where FOLDER holds the run's config.json.

Started by load.py; run by hand, it repeats a run.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import job_main
from experiments.serve_job import run
from framework.build import freeze_garbage, input_processor
from framework.models.read import read_model
from framework.study.compose import LoadConfig
from framework.study.load.run import load
from framework.study.served import Served


def serve(config: LoadConfig) -> Served:
    """Asks the server of the config for the workload."""
    config.validate()
    info = read_model(config.model)
    tokenizer = input_processor(config.model, info).tokenizer
    freeze_garbage()
    return load(config, info.config["vocab_size"], tokenizer)


if __name__ == "__main__":
    job_main(partial(run, schema=LoadConfig, serve=serve))
