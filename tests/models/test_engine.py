"""Families through the whole engine: prompts in chunks, decode steps recorded and replayed, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CacheConfig, ModelConfig, SchedulerConfig

from ..framework.models.checkpoints import make
from ..framework.models.harness import reference, sequences
from .examples import EXAMPLES

NUM_TOKENS = 24
SUBJECTS = (
    *("bloom", "cohere-norms", "cohere2", "exaone4", "glm4", "gptj", "hyperclovax", "nemotron", "olmo", "olmo3"),
    *("deepseek-v2", "deepseek-v3", "minicpm3", "gpt-oss", "llama4-chunks"),
)


@pytest.mark.parametrize("name", SUBJECTS)
def test_tokens_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    theirs = make(EXAMPLES[name], tmp_path)
    config = EngineConfig(
        ModelConfig(str(tmp_path), tokenizer="tiny", dtype="float32"),
        CacheConfig(4, 120),
        SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16),
        device="cpu",
    )
    running, prompts = LLM(config), sequences((5, 21, 40))
    given: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False)
    for prompt, output in zip(prompts, running.generate(given, params, use_tqdm=False)):
        found = list(output.outputs[0].token_ids)
        assert found == reference(theirs, [*prompt, *found]).argmax(-1)[len(prompt) - 1 : -1].tolist()
    plan = running.plan()
    assert "moe_experts" in plan or any(entry["recorded"] for entry in plan.values())
