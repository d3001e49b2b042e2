"""Pooling without weights: random ones, a simulated device, and no device at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework import LLM, EngineConfig, PoolingParams
from framework.build import build_engine
from framework.config import CacheConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.outputs import RequestOutput
from framework.study.compose import compose
from triton_kernels.ops import OPS

ROOT = Path(__file__).resolve().parents[4]
MODELS = ("bert-base", "modernbert-base", "qwen3-embedding-0.6b")
LENGTHS = (5, 400, 37, 512)


def simulated(model: str, **scheduler: Any) -> Engine:
    values = [f"model={model}", "model.load_format=dummy", "executor=simulated", "model.skip_tokenizer=true"]
    config = compose(values, ROOT / "conf").engine()
    config.scheduler = SchedulerConfig(**scheduler)
    return build_engine(config)


def finish(engine: Engine) -> dict[str, RequestOutput]:
    found = {}
    for i, length in enumerate(LENGTHS):
        engine.add_request(str(i), [7] * length, PoolingParams())
    while engine.has_unfinished():
        found.update((output.request_id, output) for output in engine.step())
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_simulated_device_computes_prompts_and_nothing_else(model: str) -> None:
    engine = simulated(model)
    found = finish(engine)
    assert len(found) == len(LENGTHS) and all(output.finished and output.pooled is None for output in found.values())
    report, stats = engine.plan_report(), engine.stats()
    assert "sample" not in report and report["paged_attention_prefill"]["calls"] > 0 and engine.clock.now() > 0
    assert stats.num_output_tokens == 0 and stats.num_prompt_tokens == sum(LENGTHS)


def test_a_prompt_in_parts_is_done_when_its_last_is() -> None:
    engine = simulated("qwen3-embedding-0.6b", max_num_batched_tokens=64)
    assert len(finish(engine)) == len(LENGTHS) and engine.stats().num_chunked_prefills


def test_the_null_executor_keeps_the_protocol() -> None:
    architecture = {"model_type": "bert", "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ModelConfig(load_format="dummy", architecture=architecture, skip_tokenizer=True)
    cache = CacheConfig(num_blocks=80, block_size=16, check_invariants=True)
    engine = build_engine(EngineConfig(model, cache, executor=ExecutorConfig(kind="null")))
    assert len(finish(engine)) == len(LENGTHS) and engine.manager.pool.num_free == 79


def test_dummy_weights() -> None:
    architecture = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {**architecture, "architectures": ["BertForSequenceClassification"], "num_labels": 3}
    config = EngineConfig(ModelConfig(load_format="dummy", architecture=given, skip_tokenizer=True), CacheConfig(num_blocks=80))
    first, again = (
        LLM(config).classify([{"prompt_token_ids": [1, 2, 3]}, {"prompt_token_ids": [4]}], use_tqdm=False) for _ in range(2)
    )
    assert [a.outputs.probs for a in first] == [b.outputs.probs for b in again]
    assert first[0].outputs.probs != first[1].outputs.probs and abs(sum(first[0].outputs.probs) - 1) < 1e-6


def test_the_cost_of_attention_that_looks_ahead() -> None:
    cost, dims = OPS["paged_attention_prefill"].cost, {"num_heads": 1, "num_kv_heads": 1, "head_dim": 1}
    seen = np.abs(np.arange(20)[:, None] - np.arange(20))
    assert cost({**dims, "causal": 0}, [20], [20]).flops == 4 * seen.size
    windowed = cost({**dims, "causal": 0, "window": 4}, [20], [20]).flops
    assert 4 * (seen < 4).sum() <= windowed <= 4 * 20 * 7
    assert cost(dims, [20], [20]).flops == 4 * 20 * 10.5
