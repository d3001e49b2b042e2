"""Prompts of latent attention in the expanded form: what the library returns, whole and in chunks, beside decodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework import LLM, EngineConfig, SamplingParams
from framework.clock import VirtualClock
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.executor.simulated import SimulatedExecutor
from framework.models.read import read_model

from ..framework.executor.simulations import DEEPSEEK_V3, simulated_config
from ..framework.models.checkpoints import make
from ..framework.models.harness import Session, build, error, model_config, reference, sequences, teacher_forced
from .examples import EXAMPLES


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3", "minicpm3"])
def test_logits(name: str, tmp_path: Path) -> None:
    theirs = make(EXAMPLES[name], tmp_path)
    model = build(replace(model_config(tmp_path, EXAMPLES[name]), latent_prefill="expanded"))
    tokens = sequences((5, 23, 48))
    for chunk in (None, 9):
        for ours, row in zip(teacher_forced(model, tokens, chunk, num_decodes=4), tokens):
            assert error(ours, reference(theirs, row)) <= 1e-4


def test_a_whole_prompt_beside_the_rest_of_another(tmp_path: Path) -> None:
    """The longest sequence has no more tokens than the most new ones, and yet something lies before a request's."""
    theirs = make(EXAMPLES["deepseek-v2-lite"], tmp_path)
    session = Session(build(replace(model_config(tmp_path, EXAMPLES["deepseek-v2-lite"]), latent_prefill="expanded")), 2)
    long, other = sequences((33, 40))
    session.step([(0, long[:20])])
    rest, whole = session.step([(0, long[20:]), (1, other)])
    assert error(rest, reference(theirs, long)[20:]) <= 1e-4 and error(whole, reference(theirs, other)) <= 1e-4


def test_tokens_of_an_engine_with_chunks_preemptions_and_shared_prefixes(tmp_path: Path) -> None:
    theirs = make(EXAMPLES["deepseek-v3"], tmp_path)
    config = EngineConfig(
        ModelConfig(str(tmp_path), dtype="float32", latent_prefill="expanded", skip_tokenizer=True),
        CacheConfig(4, 31, prefix_caching=True),
        SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=13),
    )
    running, prompts = LLM(config), sequences((5, 21, 40))
    prompts.append([*prompts[2][:30], 7])
    given: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    for prompt, output in zip(prompts, running.generate(given, params, use_tqdm=False)):
        found = list(output.outputs[0].token_ids)
        assert found == reference(theirs, [*prompt, *found]).argmax(-1)[len(prompt) - 1 : -1].tolist()
    plan, stats = running.plan(), running.engine.stats()
    assert plan["merge_attention"]["calls"] > 0 and stats.num_preemptions > 0 and stats.num_chunked_prefills > 0


def test_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"latent_prefill=expanded would change nothing: model 'tiny' has no latent attention"):
        build(ModelConfig("tiny", latent_prefill="expanded"))
    with pytest.raises(ValueError, match="knows prompts of latent attention in the absorbed form only"):
        config = simulated_config(DEEPSEEK_V3)
        config.model.latent_prefill = "expanded"
        SimulatedExecutor(config, read_model(config.model), VirtualClock())
