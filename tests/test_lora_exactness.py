"""A request's tokens with its adapter do not depend on what happens around it: which adapters others have, which slots they take,
chunks, preemption, prefix cache, steps in flight, speculation. Exactly so with the reference kernels."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from framework import EngineConfig, LoRARequest, SamplingParams, StructuredOutputsParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.lora_request import LoraConfig
from framework.speculation.config import SpeculativeConfig

from .framework.engines import finish
from .speculating import METHODS
from .test_exactness import Job, some_jobs
from .tiny_adapters import LINEARS, write_tiny_adapter

NUM_ADAPTERS = 5
Adapted = tuple[Job, LoRARequest | None]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest | None]:
    folder = tmp_path_factory.mktemp("adapters")
    targets = (LINEARS, ("q_proj", "v_proj"), ("embed_tokens", "down_proj"), LINEARS[:4], ("o_proj",))
    made = [write_tiny_adapter(folder / str(i), 1 + i, 2 + 2 * i, targets[i]) for i in range(NUM_ADAPTERS)]
    return [None, *made]


def engine(
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    max_loras: int,
    speculative: dict[str, Any] | None = None,
    kernels: str = "reference",
) -> Engine:
    cache.check_invariants = True
    return build_engine(
        EngineConfig(
            ModelConfig("tiny", dtype="float32", max_model_len=160),
            cache,
            scheduler,
            speculative_config=SpeculativeConfig.of(speculative or {}),
            lora=LoraConfig(True, max_loras, 16, NUM_ADAPTERS),
            kernels={"default": kernels},
            num_threads=1,
        )
    )


def run(running: Engine, jobs: list[Adapted]) -> list[list[int]]:
    for index, ((prompt, params), adapter) in enumerate(jobs):
        running.add_request(str(index), list(prompt), params, lora_request=adapter)
    done = finish(running)
    assert not any(output.error for output in done.values())
    return [done[str(index)].outputs[0].token_ids for index in range(len(jobs))]


@pytest.mark.parametrize(("method", "in_flight_steps"), [(None, 1), (None, 2), ("suffix", 1), ("eagle3", 2)])
def test_nothing_around_a_request_changes_what_its_adapter_says(
    method: str | None, in_flight_steps: int, adapters: list[LoRARequest | None]
) -> None:
    rng, speculative = random.Random(4), {**METHODS[method], "num_speculative_tokens": 3} if method else None
    jobs: list[Adapted] = [(job, rng.choice(adapters)) for job in some_jobs(10, seed=5, max_tokens=16)]
    jobs += [(job, rng.choice(adapters)) for job, _ in jobs[:4]]  # prompts that the cache holds of another adapter, or of the same
    by_itself = engine(CacheConfig(num_blocks=200, prefix_caching=False), SchedulerConfig(max_num_seqs=1), 1)
    expected = [run(by_itself, [job])[0] for job in jobs]
    scheduler = SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=23, in_flight_steps=in_flight_steps)
    running = engine(CacheConfig(block_size=4, num_blocks=36, prefix_caching=True), scheduler, 2, speculative)
    assert run(running, jobs) == expected
    assert run(running, jobs[::-1]) == expected[::-1]
    stats = running.stats()
    assert stats.num_preemptions > 0 and stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0
    assert method is None or sum(stats.drafts.accepted) > 0
    assert running.manager.pool.num_free == running.manager.pool.num_blocks - 1


@pytest.mark.parametrize("num_requests", [1, 3])
def test_recorded_steps_check_drafts_with_the_adapter(num_requests: int, adapters: list[LoRARequest | None]) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    jobs: list[Adapted] = [((prompt, params), adapters[-1 - i]) for i, (prompt, _) in enumerate(some_jobs(num_requests, seed=5))]
    found = []
    for speculative in (None, {**METHODS["suffix"], "num_speculative_tokens": 3}):
        running = engine(CacheConfig(num_blocks=100), SchedulerConfig(max_num_seqs=3), 3, speculative, kernels="auto")
        found.append(run(running, jobs))
        assert not speculative or sum(running.stats().drafts.drafts) > 0
    assert found[0] == found[1]


def test_who_waits_for_a_grammar_waits_for_its_adapter_too(adapters: list[LoRARequest | None]) -> None:
    grammar = StructuredOutputsParams(regex="[a-h]{8}")
    params = SamplingParams(temperature=0, max_tokens=12, structured_outputs=grammar, seed=0)
    jobs: list[Adapted] = [((prompt, params), adapter) for (prompt, _), adapter in zip(some_jobs(6, seed=5), adapters)]
    running = engine(CacheConfig(num_blocks=100), SchedulerConfig(max_num_seqs=6), 2, kernels="auto")
    together = run(running, jobs)
    assert [run(running, [job])[0] for job in jobs] == together
    assert len({tuple(tokens) for tokens in together}) > 2


@pytest.mark.slow
def test_a_thousand_adapters_through_four_slots(tmp_path: Path) -> None:
    """Most of the load is of one of them. Each says what it says alone, none is overtaken for ever, and memory stays as it was."""
    rng, targets = random.Random(1), ("q_proj", "down_proj")
    adapters = [write_tiny_adapter(tmp_path / str(i), i, 1 + i % 8, targets) for i in range(1, 1001)]
    order = [*range(1000), *[0] * 300]
    rng.shuffle(order)
    job = some_jobs(1, seed=5)[0][0], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    by_itself = engine(CacheConfig(num_blocks=100), SchedulerConfig(max_num_seqs=1), 1, kernels="auto")
    expected = [run(by_itself, [(job, adapter)])[0] for adapter in adapters]
    running = engine(CacheConfig(num_blocks=400), SchedulerConfig(max_num_seqs=16), 4, kernels="auto")
    lora, waiting, ended, memory = running.executor._model.lora, list(enumerate(order)), list[int](), list[int]()  # type: ignore[attr-defined]
    while waiting or running.has_unfinished():
        while waiting and len(running.processor.groups) < 60:
            index, number = waiting.pop(0)
            running.add_request(str(index), list(job[0]), job[1], lora_request=adapters[number])
        for output in running.step():
            if output.finished:
                ended.append(int(output.request_id))
                assert output.outputs[0].token_ids == expected[order[ended[-1]]]
                memory.append(resident_bytes())
        assert len(lora._waiting) <= NUM_ADAPTERS
    assert sorted(ended) == list(range(len(order)))
    assert max(place - index for place, index in enumerate(ended)) < 3 * 60
    assert max(memory[200:]) - memory[200] < 1 << 24, "together they take 150 MB"
    assert running.manager.pool.num_free == running.manager.pool.num_blocks - 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_adapters_were_put_to_the_test(adapters: list[LoRARequest | None]) -> None:
    (prompt, _), params = some_jobs(1, seed=5)[0], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    running = engine(CacheConfig(num_blocks=100), SchedulerConfig(max_num_seqs=6), NUM_ADAPTERS)
    found = run(running, [((prompt, params), adapter) for adapter in adapters])
    assert len({tuple(tokens) for tokens in found}) == len(adapters)
