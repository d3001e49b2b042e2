"""Images of one run in this process: python experiments/images_job.py FOLDER, where FOLDER holds the run's config.json.

Started by images.py; run by hand, it repeats a run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import job_main
from framework import GeneratedImages, ImagePipeline
from framework.interpreter import enable_interpreter
from framework.study.compose import CONFIG_FILE, ImagesConfig, load_config
from framework.study.environment import environment
from framework.study.report import format_plan
from framework.study.results import RUN_FILE, plan_columns, write_run
from framework.study.served import attempt, first_columns


def measure(config: ImagesConfig) -> tuple[GeneratedImages, dict[str, float]]:
    """The images of a run, and its metrics."""
    config.validate()
    start = time.perf_counter()
    pipeline = _open(config)
    load_s = time.perf_counter() - start
    given: dict[str, Any] = {"negative_prompt": config.negative_prompt, "guidance_scale": config.guidance_scale}
    given |= {"height": config.height, "width": config.width, "seed": config.seed, "use_tqdm": False}
    prompts = [config.prompt] * config.num_images
    pipeline.generate(prompts, num_inference_steps=config.num_warmup_steps, **given)
    start = time.perf_counter()
    made = pipeline.generate(prompts, num_inference_steps=config.num_inference_steps, **given)
    seconds = made.step_seconds
    metrics = {
        "step_p50_s": statistics.median(seconds),
        "step_mean_s": statistics.fmean(seconds),
        "step_max_s": max(seconds),
        "num_steps": len(seconds),
        "duration_s": time.perf_counter() - start,
        "load_s": load_s,
    }
    return made, metrics


def _open(config: ImagesConfig) -> ImagePipeline:
    if not config.shape:
        return ImagePipeline(config.engine())
    if config.interpret:
        enable_interpreter()  # before anything imports Triton, as libraries do
    from experiments.made_up_pipeline import write_pipeline

    with tempfile.TemporaryDirectory() as folder:
        write_pipeline(Path(folder), config.shape, config.seed)
        return ImagePipeline(replace(config.engine(), model=replace(config.model, name=folder)))


def run(folder: Path) -> bool:
    """Makes the images of the config in ``folder``; True if it worked. Either way the folder holds a run.json afterwards."""
    config = load_config(folder / CONFIG_FILE, ImagesConfig)
    row = first_columns(config)
    measured = attempt(folder, row, lambda: measure(config))
    if measured is None:
        return False
    made, metrics = measured
    files = [f"image_{i}.png" for i in range(len(made.images))]
    for file, image in zip(files, made.images):
        image.save(folder / file)
    row |= plan_columns(made.plan) | {f"metric.{name}": value for name, value in metrics.items()} | environment(config)
    write_run(folder, {**row, "status": "ok", "error": None})
    steps = f"{metrics['num_steps']} steps: {metrics['step_p50_s']:.3f} s each (median), {metrics['step_max_s']:.3f} s at most"
    print("\n\n".join([format_plan(made.plan), steps, f"{folder}: {', '.join([RUN_FILE, *files])}"]), flush=True)
    return True


if __name__ == "__main__":
    job_main(run)
