"""The steps that a kernel pack is compiled from, on kernels that are not compiled: all that an engine calls is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from framework import EngineConfig
from framework.config import CacheConfig, GraphConfig, ModelConfig, SchedulerConfig
from framework.lora_request import LoraConfig
from framework.models.read import read_model
from framework.speculation.config import SpeculativeConfig
from framework.worker import dry_run as module
from framework.worker.dry_run import dry_run
from framework.worker.local_executor import LocalExecutor
from framework.worker.target_plan import TargetPlan
from tests.framework.executor.test_latent_attention import TINY as LATENT
from tests.speculating import METHODS


def calls(
    monkeypatch: pytest.MonkeyPatch, speculative: dict[str, Any], probe: bool = False, lora: LoraConfig | None = None
) -> dict[str, int]:
    """Op -> how often a dry run calls it."""
    config = EngineConfig(
        ModelConfig("tiny", max_model_len=64),
        CacheConfig(block_size=16),
        SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=32),
        graphs=GraphConfig(batch_sizes=[1, 4]),
        kernels={"default": "torch"},
        speculative_config=SpeculativeConfig.of(speculative),
        lora=lora or LoraConfig(),
    )
    plan = TargetPlan.of(config, "sm_90", torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(TargetPlan, "of", lambda *args: plan)
        assert dry_run(config, "sm_90", probe) > 20
    return {op: entry["calls"] for op, entry in plan.report().items()}


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("method", ["ngram", "draft_model", "mtp", "eagle3", "medusa"])
def test_drafts_are_made_and_checked(method: str, probe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**METHODS[method], "num_speculative_tokens": 3, "rejection_sample_method": "standard"}
    found, plain = calls(monkeypatch, given, probe), calls(monkeypatch, {}, probe)
    assert all(found.values()) and {"verify_draft", "filter_logits"} <= set(found)
    assert found["apply_penalties"] > plain["apply_penalties"], "penalties see drafts"
    if method != "ngram":
        of_drafter = "linear" if method == "medusa" else "embedding"
        num_more = found["apply_penalties"] - plain["apply_penalties"]  # steps
        assert found[of_drafter] > plain[of_drafter] + 2 * num_more


def test_every_kind_of_step_has_rows_with_adapters_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = calls(monkeypatch, {}, lora=LoraConfig(True, 2, 8)), calls(monkeypatch, {})
    assert found["linear"] == 2 * plain["linear"] == 2 * found["lora_shrink"] and found["lora_expand"] > found["lora_shrink"]


@pytest.mark.parametrize("latent_prefill", ["absorbed", "expanded"])
def test_the_calls_are_those_of_an_executor_with_weights(latent_prefill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(
        ModelConfig("model", load_format="dummy", architecture=LATENT, latent_prefill=latent_prefill),
        CacheConfig(block_size=16, num_blocks=9),
        SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=32),
        graphs=GraphConfig(enabled=False),
        kernels={"default": "torch"},
    )
    plan = TargetPlan.of(config, "sm_90", torch.float32)
    monkeypatch.setattr(TargetPlan, "of", lambda *args: plan)
    dry_run(config, "sm_90")
    executor = LocalExecutor(config, read_model(config.model))
    for step in module._steps(config, executor.max_model_len, len(executor.groups), False):
        executor.submit(step).result()
    expected = {op: entry["calls"] for op, entry in executor.plan_report().items()}
    assert {op: entry["calls"] for op, entry in plan.report().items()} == expected
    assert ("merge_attention" in expected) == (latent_prefill == "expanded")
