"""What a drafter keeps of the tokens is whole, however they came: its drafts behind any text are those that it has for the same
text as a prompt."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from framework import SamplingParams
from framework.config import CacheConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.worker.drafting.proposer import Verified
from tests.framework.engines import run
from tests.speculating import METHODS, SHARED_PREFIX, Job, make_engine
from triton_kernels.impls._shared.native_code import library_reasons

Drafts = dict[tuple[int, ...], tuple[int, ...]]
"""By the tokens before them."""
LONGEST = 50
CHAINS = ("draft_model", "mtp", "eagle3")


def greedy(prompt: list[int], length: int) -> Job:
    return prompt, SamplingParams(temperature=0.0, max_tokens=length - len(prompt), ignore_eos=True)


JOBS = [greedy([*SHARED_PREFIX[:n], 300 + n], LONGEST) for n in (5, 31, 18, 24)]


def watched(engine: Engine, jobs: list[Job]) -> Drafts:
    """Serves the jobs; all drafts that were made."""
    runner = engine.executor._runner  # type: ignore[attr-defined]
    propose: Callable[[Verified, int], None] = runner._proposer.propose
    found: Drafts = {}

    def watching(step: Verified, count: int) -> None:
        propose(step, count)
        for seat, newest in zip(step.seats.tolist(), step.newest.tolist()):
            if count:
                *before, end = runner.rows.tokens[seat, : newest + 1].tolist(), newest + 1 + count
                found[tuple(before[0])] = tuple(runner.rows.tokens[seat, newest + 1 : end].tolist())

    runner._proposer.propose = watching
    run(engine, jobs)
    return found


def engine(method: str, cache: dict[str, Any] | None = None, speculative: dict[str, Any] | None = None, **scheduler: int) -> Engine:
    """On kernels whose passes can be recorded."""
    given = {**METHODS[method], "num_speculative_tokens": 3, **(speculative or {})}
    settled = CacheConfig(**{"num_blocks": 200, "prefix_caching": False, **(cache or {})})
    return make_engine(given, settled, SchedulerConfig(**{"max_num_seqs": 4, **scheduler}), kernels="auto")


@functools.cache
def fresh(method: str) -> Engine:
    """Serves what is given, from the first token on, in one go."""
    return engine(method, {"block_size": 64})


SCHEDULE = {"num_speculative_tokens_per_batch_size": [[1, 1, 1], [2, 2, 3], [3, 3, 0], [4, 4, 2]]}
HISTORIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {
    "other depths, also none": ({"block_size": 2}, SCHEDULE, {}),
    "chunks": ({"block_size": 2}, {}, {"max_num_batched_tokens": 7}),
    "preemptions": ({"block_size": 2, "num_blocks": 70}, {}, {}),
    "prefix hits": ({"block_size": 4, "prefix_caching": True}, {}, {"max_num_seqs": 1}),
    "all, with steps in flight": (
        {"block_size": 2, "num_blocks": 70, "prefix_caching": True},
        SCHEDULE,
        {"max_num_batched_tokens": 9, "in_flight_steps": 2},
    ),
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("method", CHAINS)
def test_drafts_do_not_depend_on_how_their_tokens_came(method: str, history: str) -> None:
    cache, speculative, scheduler = HISTORIES[history]
    running = engine(method, cache, speculative, **scheduler)
    found = watched(running, JOBS)
    stats = running.stats()
    happened = {"chunks": stats.num_chunked_prefills, "preemptions": stats.num_preemptions, "prefix hits": stats.prefix_hit_tokens}
    assert happened.get(history, 1)
    first = [text for text in found if len(text) in {len(prompt) + 1 for prompt, _ in JOBS}]
    texts = [*first, *random.Random(0).sample(sorted(found), 20)]
    expected = watched(fresh(method), [(list(text[:-1]), SamplingParams(temperature=0.0, max_tokens=5)) for text in texts])
    assert len(first) >= 3 and {text: found[text] for text in texts} == {text: expected[text][: len(found[text])] for text in texts}


def test_drafts_do_not_depend_on_whose_blocks_were_copied() -> None:
    """Of parallel samples, which share a prompt that ends within a block."""
    prompt = SHARED_PREFIX[:21]

    def sampled(seed: int, n: int = 1) -> Job:
        return prompt, SamplingParams(n=n, seed=seed, temperature=1.0, max_tokens=12, ignore_eos=True)

    running = engine("mtp", {"block_size": 8})
    found = watched(running, [sampled(7, n=2)])
    assert running.stats().num_forks == 1
    assert found == watched(fresh("mtp"), [sampled(7), sampled(8)])


@pytest.mark.parametrize("in_flight_steps", [1, 2])
@pytest.mark.parametrize("method", CHAINS)
def test_recorded_passes_make_the_same_drafts(method: str, in_flight_steps: int) -> None:
    """Of rows that are some of a prompt's, and of those with fewer drafts than others."""
    if library_reasons("native_step.c", torch.float32):
        pytest.skip("no C compiler")
    recorded, eager = (engine(method, max_num_batched_tokens=11, in_flight_steps=in_flight_steps) for _ in range(2))
    eager.executor._runner._proposer._graphs = None  # type: ignore[attr-defined]
    found = watched(recorded, JOBS)
    assert found == watched(eager, JOBS)
    guesser = recorded.executor._runner._proposer._guesser  # type: ignore[attr-defined]
    guesser.extend = None  # every pass over a draft is a replay by now
    assert watched(recorded, JOBS) == found
