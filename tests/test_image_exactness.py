"""The tokens of a request with images do not depend on what happens around it: batch, chunks, blocks, preemption, prefix cache, and
what room there is for embeddings. Exactly so with the reference kernels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine

from .framework.engines import finish
from .framework.multimodal.checkpoints import KINDS, make, picture
from .framework.multimodal.cogvlm import Checkpoint

NAMES = ("llava", "qwen2_vl", "gemma3", "cogvlm")
"""Plain, with three positions a token, with images whose tokens see each other, with visual experts."""
Job = tuple[dict[str, Any], SamplingParams]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in found.items():
        Checkpoint(folder) if name == "cogvlm" else make(name, folder)
    return found


def engine(folder: Path, cache: CacheConfig, scheduler: SchedulerConfig) -> Engine:
    cache.check_invariants = True
    model = ModelConfig(str(folder), dtype="float32", max_model_len=160)
    return build_engine(EngineConfig(model, cache, scheduler, kernels={"default": "reference"}, num_threads=1))


def run(running: Engine, jobs: list[Job]) -> list[list[int]]:
    for index, (prompt, params) in enumerate(jobs):
        running.add_request(str(index), prompt, params)
    done = finish(running)
    assert not any(output.error for output in done.values())
    return [done[str(index)].outputs[0].token_ids for index in range(len(jobs))]


def some_jobs(rng: random.Random, template: str, count: int, most: int) -> list[Job]:
    """With none to ``most`` images of five, some of which begin alike."""
    jobs = []
    for seed in range(count):
        text, images = "common start " * rng.randrange(2), []
        for _ in range(rng.randrange(1 + most)):
            text += template + "of it" * rng.randrange(2)
            name = rng.randrange(5)
            images.append(picture(name, 24 + 8 * (name % 3), 32))
        text += "abcdefghij"[: rng.randrange(not images, 11)]
        params = SamplingParams(temperature=rng.choice([0.0, 0.9]), seed=seed, max_tokens=rng.randrange(1, 9), ignore_eos=True)
        jobs.append(({"prompt": text, "multi_modal_data": {"image": images}}, params))
    return jobs


_ALONE: dict[Path, Engine] = {}


def check_mix(folder: Path, name: str, seed: int) -> dict[str, int]:
    """Returns how often what a mix is about happened."""
    rng = random.Random(seed)
    jobs = some_jobs(rng, "<image>", 7, 1) if name == "cogvlm" else some_jobs(rng, KINDS[name].template, 7, 2)
    if folder not in _ALONE:
        _ALONE[folder] = engine(folder, CacheConfig(num_blocks=60, prefix_caching=False), SchedulerConfig(max_num_seqs=1))
    expected = [run(_ALONE[folder], [job])[0] for job in jobs]
    block_size, caches = rng.choice([2, 4, 16]), rng.random() < 0.7
    num_groups = 2 if name == "gemma3" else 1
    room = 60 if name == "cogvlm" else 130  # for the longest prompt, and a few of the others
    num_blocks = 2 + num_groups * (room + rng.randrange(60)) // block_size
    cache = CacheConfig(block_size=block_size, num_blocks=num_blocks, prefix_caching=caches)
    scheduler = SchedulerConfig(
        max_num_seqs=rng.randrange(2, 8),
        max_num_batched_tokens=rng.choice([18, 33, 512]),
        in_flight_steps=rng.randrange(1, 3),
        encoder_budget=rng.choice([1, 20, 4096]),
        encoder_cache=rng.choice([24, 40, 4096]),
    )
    running = engine(folder, cache, scheduler)
    assert run(running, jobs) == expected
    assert run(running, jobs[::-1]) == expected[::-1]
    assert running.manager.pool.num_free == running.manager.pool.num_blocks - 1
    stats, images = running.stats(), running.scheduler.images
    assert images is not None
    return {
        "preemptions": stats.num_preemptions,
        "chunks": stats.num_chunked_prefills,
        "hits": stats.prefix_hit_tokens,
        "encoded again": max(0, images.num_encoded - 5),
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_mixture_changes_what_is_said_of_an_image(name: str, mix_seed: int, folders: dict[str, Path]) -> None:
    check_mix(folders[name], name, mix_seed)


@pytest.mark.parametrize("name", NAMES)
def test_images_were_put_to_the_test(name: str, folders: dict[str, Path]) -> None:
    happened = [check_mix(folders[name], name, seed) for seed in range(4)]
    totals = {key: sum(one[key] for one in happened) for key in happened[0]}
    assert all(totals.values()), totals
