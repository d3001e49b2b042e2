"""Padded decode batches, without a GPU: what would be recorded is called instead, which proves buffers and padding."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.worker.local_executor import LocalExecutor

PROMPTS = ["def main():\n", "import os, sys\n", "class A:\n    x = 1\n", "for i in range(10):\n", "x"]
PARAMS = [SamplingParams(temperature=0, max_tokens=5 * n, ignore_eos=True) for n in range(1, 6)]


def llm(**scheduler: int) -> LLM:
    return LLM(
        EngineConfig(
            ModelConfig("tiny", dtype="float32"),
            CacheConfig(block_size=4, num_blocks=200),
            SchedulerConfig(max_num_seqs=8, **scheduler),
            num_threads=1,
        )
    )


def tokens(running: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in running.generate(PROMPTS, PARAMS, use_tqdm=False)]


def record(running: LLM, sizes: list[int]) -> list[int]:
    """Captures graphs that call what they would replay; the list of the sizes that were run since."""
    executor = running.engine.executor
    assert isinstance(executor, LocalExecutor)
    replayed: list[int] = []

    def capture(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def replay() -> torch.Tensor:
            logits = run()
            replayed.append(len(logits))
            return logits

        return replay

    executor._runner.capture_graphs(sizes, capture)
    return replayed


@pytest.mark.parametrize("sizes", [[8], [1, 2, 4, 8], [2]])
def test_padded_steps_give_the_same_tokens(sizes: list[int]) -> None:
    running = llm()
    replayed = record(running, sizes)
    caches = running.engine.executor._runner.caches
    before = [kv.k[0].clone() for kv in caches]
    assert tokens(running) == tokens(llm())
    assert replayed and set(replayed) <= set(sizes)
    assert all(torch.equal(old, kv.k[0]) for old, kv in zip(before, caches)), "padding wrote to the null block"


@functools.cache
def plain(budget: int) -> LLM:
    return llm(max_num_batched_tokens=budget)


@functools.cache
def recorded(budget: int) -> tuple[LLM, list[int]]:
    running = llm(max_num_batched_tokens=budget)
    return running, record(running, [1, 2, 4, 8])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(budget=st.sampled_from([2, 4, 5, 9]), seed=st.integers(0, 10_000))
@example(budget=4, seed=0)
def test_chunks_of_one_token_beside_decodes_change_nothing(budget: int, seed: int) -> None:
    """The middle of a prompt, one token long, looks like a decode but samples nothing."""
    rng = random.Random(seed)
    prompts = [{"prompt_token_ids": rng.choices(range(300, 2000), k=rng.choice([1, 2, 3, 30]))} for _ in range(6)]
    params = [
        SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            seed=index,
            max_tokens=rng.randrange(1, 25),
            prompt_logprobs=rng.choice([None, None, 1]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            ignore_eos=True,
        )
        for index in range(6)
    ]

    def outputs(running: LLM) -> list[tuple[list[int], int | None]]:
        found = running.generate(prompts, params, use_tqdm=False)
        return [(o.outputs[0].token_ids, None if o.prompt_logprobs is None else len(o.prompt_logprobs)) for o in found]

    running, replayed = recorded(budget)
    replayed.clear()
    assert outputs(running) == outputs(plain(budget))
    assert replayed


def test_every_group_has_tables_of_its_own() -> None:
    """Layers with a window beside layers without."""
    architecture = {
        "model_type": "gemma2",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "sliding_window": 8,
    }
    model = ModelConfig("none", load_format="dummy", architecture=architecture, dtype="float32")
    config = EngineConfig(model, CacheConfig(4, 200), SchedulerConfig(max_num_seqs=8), device="cpu", num_threads=1)
    prompts = [{"prompt_token_ids": list(range(5, 5 + length))} for length in (3, 30, 17)]
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=20, ignore_eos=True, detokenize=False)
    plain, recorded = LLM(config), LLM(config)
    assert len(plain.engine.executor.groups) == 2
    replayed = record(recorded, [4])
    found = [[o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)] for llm in (plain, recorded)]
    assert found[0] == found[1] and replayed
