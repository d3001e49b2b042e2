"""What a model loses by a quantization, a cache or a kernel, against the unquantized model on the same text.

    python experiments/quality.py quant=int8                             one run, on the held-out modules of the corpus
    python experiments/quality.py -m quant=none,rtn-int4,gptq-int4       a sweep: every combination is a run
    python experiments/quality.py cache=fp8 chunk_tokens=1 text=FILE     token by token, by the decode kernels; another text

Every run happens in a fresh process and leaves run.json in its folder; a run that fails leaves one with its error. ``kernelswap
collect FOLDER`` makes the table; ``kernelswap collect --join SERVING FOLDER`` puts the columns beside those of serving runs of
the same model, quantization, cache and kernels, and ``kernelswap plot quality SERVING FOLDER`` draws them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import run_hydra_job
from framework.study.compose import QualityConfig, hydra_version_base, register_schema, to_config

register_schema()


@hydra.main(config_path="../conf", config_name="quality", **hydra_version_base())
def main(composed: DictConfig) -> float | None:
    """Composes one run's config and measures it."""
    return run_hydra_job(to_config(composed, QualityConfig), Path(__file__).with_name("quality_job.py"))


if __name__ == "__main__":
    main()
