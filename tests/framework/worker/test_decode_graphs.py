"""Padded decode batches, without a GPU: what would be recorded is called instead, which proves buffers and padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

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


@pytest.mark.parametrize("sizes", [[8], [1, 2, 4, 8], [2]])
def test_padded_steps_give_the_same_tokens(sizes: list[int]) -> None:
    running = llm()
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
    before = [kv.k[0].clone() for kv in executor._runner.caches]
    assert tokens(running) == tokens(llm())
    assert replayed and set(replayed) <= set(sizes)
    assert all(torch.equal(old, kv.k[0]) for old, kv in zip(before, executor._runner.caches)), "padding wrote to the null block"
