"""Block diffusion on the verifying null executor: whatever the batch, every request gets the tokens that it gets alone, and in as
many passes; what others may read was computed with whole canvases."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest

from framework.clock import VirtualClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, SchedulerConfig
from framework.engine.diffusion import Denoising, DiffusionConfig
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.kv_cache.spec import CacheGroup, group_layers
from framework.engine.prompts import EngineInput
from framework.engine.redrawing import Redrawing, Redraws
from framework.executor.null import NullExecutor
from framework.executor.shape import ModelShape
from framework.models.architecture import Diffusion
from framework.sampling_params import SamplingParams

from ..engines import FULL, MODELS, WIDE, assert_idle, finish, token_params, tokens_of

VOCAB, MASK = 60, 7
REDRAWS = Redraws(max_passes=6, coldest=0.3, hottest=0.9, entropy_bound=0.6, num_stable=1, mean_entropy=0.5)


@dataclass(frozen=True)
class Kind:
    """Of a model: how it denoises, by which rule, in how many passes, over which groups of the cache."""

    diffusion: Diffusion
    rule: DiffusionConfig
    passes: float | None
    groups: tuple[CacheGroup, ...] = MODELS["full"]


KINDS = {
    "canvas-4": Kind(Diffusion(4, MASK, False), DiffusionConfig(), 2.5),
    "canvas-8": Kind(Diffusion(8, MASK, False), DiffusionConfig(), None),
    "few passes": Kind(Diffusion(8, MASK, False), DiffusionConfig(max_passes=3), 2.0),
    "canvas-1": Kind(Diffusion(1, MASK, False), DiffusionConfig(), None),
    "at once": Kind(Diffusion(5, MASK, False), DiffusionConfig(threshold=0.0), None),
    "causal prompts": Kind(Diffusion(4, MASK, True), DiffusionConfig(), 1.5),
    "redrawn": Kind(Diffusion(6, None, True, REDRAWS), DiffusionConfig(), 3.5),
    "redrawn in windows": Kind(Diffusion(5, None, True, REDRAWS), DiffusionConfig(), None, group_layers([FULL, WIDE])),
}


def make_engine(kind: Kind, cache: CacheConfig, **scheduler: Any) -> Engine:
    cache.check_invariants = True
    settings = SchedulerConfig(**{"max_num_seqs": 8, "in_flight_steps": 1, **scheduler})
    executor = ExecutorConfig("null", passes_per_canvas=kind.passes)
    config = EngineConfig(cache=cache, scheduler=settings, executor=executor, diffusion=kind.rule)
    found, size = NullExecutor(config, ModelShape(kind.groups, VOCAB, 200, diffusion=kind.diffusion)), kind.diffusion.canvas_size
    if (redraws := kind.diffusion.redraws) is not None:
        denoising: Denoising = Redrawing(size, VOCAB, redraws)
    else:
        denoising = Denoising(size, MASK, kind.rule)
    return Engine(config, found, InputProcessor(None, {}, ()), VirtualClock(), None, None, None, denoising)


Job = tuple[list[int], SamplingParams]


def random_jobs(rng: random.Random, canvas: int) -> list[Job]:
    """Some of which begin alike."""
    stems = ([], [1] * 19, [1, 2, 3] * 9)
    return [
        (
            [*rng.choice(stems), *rng.choices((1, 2, 3), k=rng.randint(1, 2 * canvas + 9))],
            token_params(
                max_tokens=rng.randint(1, 4 * canvas), seed=rng.randrange(50), stop_token_ids=rng.choice(([], [], [3, 11]))
            ),
        )
        for _ in range(rng.randint(2, 9))
    ]


def serve(engine: Engine, jobs: list[Job], rng: random.Random, num_aborts: int) -> tuple[dict[int, list[int]], set[int]]:
    """Tokens by the number of the job, and those that were aborted on their way; they come at random times."""
    order, done = list(enumerate(jobs)), dict[int, list[int]]()
    doomed, aborted = rng.sample(range(len(jobs)), num_aborts), set[int]()
    while order or engine.has_unfinished():
        while order and rng.random() < 0.9:
            index, (prompt, params) = order.pop(0)
            engine.add_request(str(index), EngineInput(prompt), replace(params), priority=rng.randrange(3))
        if doomed and rng.random() < 0.05:
            for output in engine.abort([str(doomed.pop())]):
                aborted.add(int(output.request_id))
                done[int(output.request_id)] = tokens_of(output)[0]
        for output in engine.step():
            assert output.error is None, output.error
            if output.finished:
                done[int(output.request_id)] = tokens_of(output)[0]
    return done, aborted


def check_mixes(kind: Kind, seeds: range) -> None:
    happened, canvas, is_redrawn = Counter[str](), kind.diffusion.canvas_size, kind.diffusion.redraws is not None
    alone = make_engine(kind, CacheConfig(4, 400, prefix_caching=False), max_num_batched_tokens=200)
    for seed in seeds:
        rng = random.Random(seed)
        jobs, expected, before = random_jobs(rng, canvas), list[list[int]](), alone.stats().num_denoising_passes
        for prompt, params in jobs:
            alone.add_request("r", EngineInput(prompt), replace(params))
            expected += tokens_of(finish(alone)["r"])
        num_passes = alone.stats().num_denoising_passes - before
        longest = max(len(prompt) + (params.max_tokens or 0) for prompt, params in jobs) + canvas
        size = rng.choice([canvas, 2 * canvas, 3, 6])
        blocks = 1 + len(kind.groups) * -(-longest // size) + rng.choice([0, 0, 1, 200])
        engine = make_engine(
            kind,
            CacheConfig(size, blocks, prefix_caching=is_redrawn or (not kind.diffusion.causal_prompt and size % canvas == 0)),
            policy=rng.choice(["fcfs", "priority"]),
            max_num_seqs=rng.choice([2, 5, 8]),
            max_num_batched_tokens=rng.choice([canvas, 2 * canvas + 1, 64]),
        )
        for _ in range(2):  # the second time with what the first left there
            before, num_preemptions = engine.stats().num_denoising_passes, engine.stats().num_preemptions
            done, aborted = serve(engine, jobs, rng, rng.choice([0, 0, 2]))
            for index, tokens in enumerate(expected):
                assert done[index] == (tokens[: len(done[index])] if index in aborted else tokens), (seed, index)
            if not aborted and not (is_redrawn and engine.stats().num_preemptions > num_preemptions):
                assert engine.stats().num_denoising_passes - before == num_passes, seed
            assert_idle(engine)
            happened["aborted"] += len(aborted)
        stats = engine.stats()
        happened["steps"] += stats.num_steps
        happened["preempted"] += stats.num_preemptions
        happened["chunked"] += stats.num_chunked_prefills
        happened["found"] += stats.prefix_hit_tokens
    rare = {"found"} if kind.diffusion.causal_prompt and not is_redrawn else set()
    assert all(count or name in rare for name, count in happened.items()), happened
    assert happened["steps"] > 30 * len(seeds)


@pytest.mark.parametrize("name", KINDS)
def test_mixes_change_nothing(name: str) -> None:
    check_mixes(KINDS[name], range(12))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_mixes_change_nothing(name: str) -> None:
    check_mixes(KINDS[name], range(100, 400))
