"""What the steps of a pipeline that makes images take, with each choice of kernels.

    python experiments/images.py                                               a small pipeline of random weights
    python experiments/images.py -m kernels.paged_attention_prefill=native,torch repeats=3
    python experiments/images.py pipeline=checkpoint model.name=FOLDER         a checkpoint; its images are in the run's folder

Every run happens in a fresh process and leaves run.json, with the plan, and the images in its folder. ``kernelswap collect FOLDER``
makes the table. It needs the extra diffusers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import run_hydra_job
from framework.study.compose import ImagesConfig, hydra_version_base, register_schema, to_config

register_schema()


@hydra.main(config_path="../conf", config_name="images", **hydra_version_base())
def main(composed: DictConfig) -> float | None:
    """Composes one run's config and measures it."""
    return run_hydra_job(to_config(composed, ImagesConfig), Path(__file__).with_name("images_job.py"))


if __name__ == "__main__":
    main()
