"""A simulated engine holds as many KV blocks as one with a model, after every step, whatever a layer's attention reaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine

from ...models.examples import EXAMPLES
from ..models.checkpoints import make

LENGTHS = [(7, 30), (61, 12), (33, 20), (18, 9), (50, 3)]  # of prompts and outputs


def held(engine: Engine) -> list[int]:
    """Blocks in use after each step."""
    for i, (num_prompt, num_output) in enumerate(LENGTHS):
        params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True, detokenize=False)
        engine.add_request(str(i), {"prompt_token_ids": [3 + i + j % 50 for j in range(num_prompt)]}, params)
    found = []
    while engine.has_unfinished():
        engine.step()
        found.append(engine.executor.num_blocks - engine.manager.pool.num_free)
    return found


@pytest.mark.parametrize("max_model_len", [None, 8])
@pytest.mark.parametrize("name", ["llama4-chunks", "mistral", "gemma3", "gpt-oss", "deepseek-v2-lite", "llama"])
def test_blocks_are_those_of_an_engine_with_a_model(name: str, max_model_len: int | None, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    real = EngineConfig(
        ModelConfig(str(tmp_path), dtype="float32", max_model_len=max_model_len, skip_tokenizer=True),
        CacheConfig(4, memory_bytes=2**17, prefix_caching=False),
        SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, in_flight_steps=1),
        num_threads=1,
    )
    simulated = replace(real, executor=replace(real.executor, kind="simulated"))
    engines = [build_engine(config) for config in (real, simulated)]
    assert engines[0].executor.groups == engines[1].executor.groups
    assert engines[0].executor.num_blocks == engines[1].executor.num_blocks
    if max_model_len is None:
        assert held(engines[0]) == held(engines[1])


@pytest.mark.parametrize("kind", ["local", "simulated", "null"])
def test_chunks_that_are_no_whole_blocks_are_refused(kind: str, tmp_path: Path) -> None:
    make(EXAMPLES["llama4-chunks"], tmp_path)
    config = EngineConfig(ModelConfig(str(tmp_path), dtype="float32", skip_tokenizer=True), CacheConfig(8, num_blocks=9))
    config.executor.kind = kind
    with pytest.raises(ValueError, match=r"which are no whole blocks of 8: set cache.block_size"):
        build_engine(config)
