"""Images on executors without a device: what the books say is held against a mirror of what a device would have, whatever happens
around a request; and a simulated device takes the time of its tower."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from framework.build import build_engine
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.prompts import EngineInput
from framework.multimodal import sized

from ..engines import assert_idle, finish, token_params
from .checkpoints import KINDS, picture
from .test_sized import shape

NAMES = ("llava", "qwen2_vl", "gemma3")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of tiny models."""
    monkeypatch.setattr(sized, "QWEN_PIXELS", (64, 64 * 128))
    monkeypatch.setattr(sized, "INTERNVL_TILES", (1, 4))


def engine(name: str, kind: str, cache: CacheConfig, scheduler: SchedulerConfig, **given: Any) -> Engine:
    """Of a shape without a folder."""
    architecture = {key: value for key, value in KINDS[name].config().to_dict().items() if value is not None}
    executor = ExecutorConfig(kind)
    if kind == "simulated":  # and its host takes no time
        executor = ExecutorConfig(kind, "h200", "roofline", 1.0, 0.0, 0.0, 0.0)
    model = ModelConfig(name, load_format="dummy", dtype="float32", architecture=architecture, max_model_len=200)
    return build_engine(EngineConfig(model, cache, scheduler, executor=executor, **given))


def prompt(running: Engine, rng: random.Random, most: int) -> EngineInput:
    """With none to ``most`` images of five among tokens."""
    places = running.inputs.image_prompts
    assert places is not None
    ids, images = [7] * rng.randrange(0, 9, 4), []
    for _ in range(rng.randrange(1 + most)):
        ids += [places.placeholder_id, *[9] * rng.randrange(3)]
        name = rng.randrange(5)
        images.append(picture(name, 24 + 8 * (name % 3), 32))
    ids += list(range(10, 10 + rng.randrange(not images, 11)))
    return running.inputs.prompt({"prompt_token_ids": ids, "multi_modal_data": {"image": images}} if images else ids)


def run(running: Engine, jobs: list[tuple[EngineInput, int]], stopped: set[int]) -> list[list[int]]:
    for index, (given, num_output) in enumerate(jobs):
        running.add_request(str(index), given, token_params(max_tokens=num_output, ignore_eos=True, seed=index))
    done = {}
    for index in stopped:
        done |= {output.request_id: output for output in running.step()}
        running.abort([str(index)])
    done |= finish(running)
    assert_idle(running)
    return [done[str(index)].outputs[0].token_ids if index not in stopped else [] for index in range(len(jobs))]


@pytest.mark.parametrize("name", NAMES)
def test_no_mixture_reads_embeddings_that_are_not_there(name: str, mix_seed: int) -> None:
    """With ``cache.check_invariants`` tokens are a function of all before them, as the cache holds them, and of their images."""
    rng = random.Random(mix_seed)
    alone = engine(name, "null", CacheConfig(4, num_blocks=400, prefix_caching=False, check_invariants=True), SchedulerConfig())
    jobs = [(prompt(alone, rng, 2), rng.randrange(1, 9)) for _ in range(9)]
    stopped = {0, 3} if rng.random() < 0.5 else set()
    expected = [found if index not in stopped else [] for index, found in enumerate(run(alone, jobs, set()))]
    size = rng.choice([2, 4, 16])
    blocks = 2 + (1 + (name == "gemma3")) * (110 + rng.randrange(60)) // size
    cache = CacheConfig(size, num_blocks=blocks, prefix_caching=rng.random() < 0.7, check_invariants=True)
    scheduler = SchedulerConfig(
        max_num_seqs=rng.randrange(2, 8),
        max_num_batched_tokens=rng.choice([18, 33, 512]),
        encoder_budget=rng.choice([1, 20, 4096]),
        encoder_cache=rng.choice([24, 40, 4096]),
    )
    running = engine(name, "null", cache, scheduler)
    assert run(running, jobs, stopped) == expected
    assert run(running, jobs, set()) == run(alone, jobs, set())


def test_other_images_are_other_tokens() -> None:
    """To the mirror, as to a model."""
    running = engine("llava", "null", CacheConfig(4, num_blocks=400, check_invariants=True), SchedulerConfig())
    given = [{"prompt_token_ids": [5, 258, 6], "multi_modal_data": {"image": picture(seed)}} for seed in (1, 1, 2)]
    first, again, other = (run(running, [(running.inputs.prompt(one), 8)], set()) for one in given)
    assert first == again != other


@pytest.mark.parametrize("chunked", [True, False])
def test_a_request_that_waits_for_blocks_comes_to_no_image(chunked: bool) -> None:
    """Each step would count it once more, and have its image encoded once more where others take the room."""
    scheduler = SchedulerConfig(chunked_prefill=chunked, encoder_budget=40, encoder_cache=40)
    running = engine("llava", "null", CacheConfig(4, num_blocks=8, prefix_caching=False, check_invariants=True), scheduler)
    given = [{"prompt_token_ids": [5, 258, 6], "multi_modal_data": {"image": picture(seed)}} for seed in range(6)]
    run(running, [(running.inputs.prompt(one), 8) for one in given], set())
    stats = running.stats()
    assert stats.num_preemptions == 0
    assert (stats.num_image_queries, stats.num_image_hits, stats.num_images_encoded) == (6, 0, 6)


def steps_of(running: Engine, given: EngineInput) -> list[float]:
    """When each token came."""
    running.add_request("0", given, token_params(max_tokens=4, ignore_eos=True))
    start_s, (output,) = running.clock.now(), finish(running).values()
    assert output.metrics is not None
    return [time_s - start_s for time_s in output.metrics.token_times_s]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "internvl", "llava_next"])
def test_an_image_takes_the_time_of_its_tower_once(name: str) -> None:
    running = engine(name, "simulated", CacheConfig(4, num_blocks=400, prefix_caching=False), SchedulerConfig())
    places = running.inputs.image_prompts
    assert places is not None
    shown = {"prompt_token_ids": [5, places.placeholder_id, 6], "multi_modal_data": {"image": picture(0)}}
    with_image = running.inputs.prompt(shown)
    text = EngineInput([5] * len(with_image.token_ids))
    calls = {"library": 0, "linear": 0}

    def added() -> dict[str, int]:
        found = running.executor.plan_report()
        seen = {op: found.get(op, {}).get("calls", 0) for op in calls}
        difference = {op: seen[op] - calls[op] for op in calls}
        calls.update(seen)
        return difference

    plain, plain_calls = steps_of(running, text), added()
    first, first_calls = steps_of(running, with_image), added()
    again, again_calls = steps_of(running, with_image), added()
    assert plain_calls == again_calls and not plain_calls["library"], "embeddings are there"
    sees_more = name == "gemma3"  # whose tokens of an image see those behind them, too
    assert again[0] > plain[0] if sees_more else again[0] == pytest.approx(plain[0])
    assert first[0] > plain[0] and first_calls["library"] > 0 and first_calls["linear"] > plain_calls["linear"]
    assert np.diff(first) == pytest.approx(np.diff(plain)) and np.diff(again) == pytest.approx(np.diff(plain))
    stats = running.stats()
    assert (stats.num_image_queries, stats.num_image_hits, stats.num_images_encoded) == (2, 1, 1)


def test_more_pixels_take_longer() -> None:
    running = engine("qwen2_vl", "simulated", CacheConfig(4, num_blocks=400, prefix_caching=False), SchedulerConfig())
    taken, places = [], running.inputs.image_prompts
    assert places is not None
    for side in (16, 32, 64, 90):
        shown = {"prompt_token_ids": [5, places.placeholder_id], "multi_modal_data": {"image": picture(0, side, side)}}
        taken.append(steps_of(running, running.inputs.prompt(shown))[0])
    assert all(less < more for less, more in pairwise(taken))


def test_weights_and_embeddings_of_images_take_memory() -> None:
    def num_blocks(**model: Any) -> int:
        given = ModelConfig("m", load_format="dummy", architecture=KINDS["llava"].config().to_dict(), **model)
        return build_engine(EngineConfig(given, executor=ExecutorConfig("simulated", "h200"))).executor.num_blocks

    assert num_blocks() <= num_blocks(limit_mm_per_prompt={"image": 0})


def test_embeddings_that_are_kept_take_the_room_of_blocks() -> None:
    """Of half precision, as wide as the hidden states."""
    config = shape("llava-1.5-7b")
    config = replace(config, cache=CacheConfig(block_size=16))
    few, many = (
        build_engine(replace(config, scheduler=SchedulerConfig(encoder_cache=count))).executor.num_blocks
        for count in (1000, 1000 + 200 * 1024)
    )
    assert few - many == pytest.approx(200 * 1024 * 4096 / (16 * 32 * 2 * 4096), abs=1)


def test_pipelines_take_no_images() -> None:
    running = engine("llava", "simulated", CacheConfig(4, num_blocks=400), SchedulerConfig(), parallel=ParallelConfig(pp=2))
    with pytest.raises(ValueError, match=r"parallel\.pp=2 would have a tower in every stage"):
        running.inputs.prompt({"prompt_token_ids": [258], "multi_modal_data": {"image": picture(0)}})
