"""A simulated device has as many KV blocks as a real one with that memory would get."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from framework.config import CacheConfig, QuantConfig, SchedulerConfig
from framework.executor.device_memory import activation_bytes
from framework.models.ranks import rank_architecture, read_weight_scheme, stage_weight_bytes, stages
from framework.models.read import read_model
from framework.models.weights import weight_bytes
from framework.plan import device_model
from framework.worker.devices import Cuda
from framework.worker.local_executor import LocalExecutor

from .simulations import LLAMA_8B, LLAMA_70B, QWEN_MOE, make_executor, simulated_config

TOTAL = device_model("h200").memory_bytes


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["auto", "float8_e4m3fn"])
@pytest.mark.parametrize("scheme", ["none", "fp8", "rtn-int4", "gptq-int4"])
def test_as_many_blocks_as_the_real_rule_gives(fraction: float, dtype: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real executor asks torch for free memory after the weights, and for the peak of the largest step."""
    given: dict[str, Any] = {
        "cache": CacheConfig(16, memory_fraction=fraction, dtype=dtype),
        "scheduler": SchedulerConfig(max_num_batched_tokens=4096),
        "quant": QuantConfig(scheme),
    }
    simulated, config = make_executor(LLAMA_8B, **given), simulated_config(LLAMA_8B, **given)
    architecture = read_model(config.model).architecture
    assert architecture is not None
    activations, before = activation_bytes(architecture, config, "bfloat16"), 12345
    memory = {"max_memory_allocated": before + activations, "memory_allocated": before}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (TOTAL - simulated.weight_bytes, TOTAL))
    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    real = SimpleNamespace(
        groups=simulated.groups,
        _own_groups=simulated.groups,
        max_model_len=simulated.max_model_len,
        _drafter=None,
        _draft_probs_bytes=lambda config: 0,
        _embeddings_bytes=lambda config: 0,
        _most_encoded=0,
        _forward_null_batch=lambda config, device: None,
        _state_bytes=lambda config: 0,
    )
    device = Cuda.__new__(Cuda)
    device.torch = torch.device("cuda", 0)
    assert LocalExecutor._fit_blocks(real, config, device) == simulated.num_blocks  # type: ignore[arg-type]


def test_weights_are_those_of_the_real_estimate() -> None:
    for scheme in ("none", "int8", "fp8-block"):
        config = simulated_config(LLAMA_8B, quant=QuantConfig(scheme))
        info = read_model(config.model)
        assert info.architecture is not None
        expected = weight_bytes(info.architecture, read_weight_scheme(info, config.quant), torch.bfloat16, max_len=0)
        assert make_executor(LLAMA_8B, quant=config.quant).weight_bytes == round(expected)


@pytest.mark.parametrize(("architecture", "cuts"), [(LLAMA_70B, {"tp": 8}), (QWEN_MOE, {"tp": 4}), (QWEN_MOE, {"tp": 4, "ep": 4})])
def test_devices_share_the_weights(architecture: dict[str, Any], cuts: dict[str, int]) -> None:
    """But norms and routers, which each has whole."""
    config = simulated_config(architecture, **cuts, pp=2)
    info = read_model(config.model)
    assert info.architecture is not None
    scheme, rank = read_weight_scheme(info, config.quant), rank_architecture(info.architecture, config.parallel)
    whole = weight_bytes(info.architecture, scheme, torch.bfloat16, max_len=0)
    held = [stage_weight_bytes(rank, stage, config.parallel.ep, scheme, "bfloat16") for stage in stages(info.architecture, 2)]
    assert config.parallel.tp * sum(held) == pytest.approx(whole, rel=0.005)
    assert config.parallel.tp * sum(held) > whole


def test_the_weights_of_a_model_are_those_of_all_its_devices() -> None:
    whole = make_executor(LLAMA_70B).weight_bytes
    for cuts in ({"tp": 8}, {"pp": 2}, {"tp": 4, "pp": 2, "dp": 2}):
        assert make_executor(LLAMA_70B, **cuts).weight_bytes == pytest.approx(whole, rel=0.005)


def test_stages_and_ranks_leave_more_for_the_cache() -> None:
    cache = CacheConfig(16)
    scheduler = SchedulerConfig(max_num_seqs=4096)  # so many that memory is what bounds the cache
    alone = make_executor(LLAMA_8B, cache=cache, scheduler=scheduler).num_blocks
    per_token = 32 * 2 * 8 * 128 * 2
    budget = alone * 16 * per_token
    weights = 16.06e9
    for cuts in ({"tp": 2}, {"pp": 2}):
        found = make_executor(LLAMA_8B, cache=cache, scheduler=scheduler, **cuts)
        assert found.num_blocks * 16 * per_token / 2 == pytest.approx(budget + weights / 2, rel=0.03)


def test_memory_too_small_says_how_many_devices_would_do() -> None:
    for cuts in ({}, {"tp": 1}):
        with pytest.raises(ValueError, match=r"1 x h200 of 139 GiB .* 131.4 GiB of weights .* needs at least 2 GPUs"):
            make_executor(LLAMA_70B, cache=CacheConfig(16), **cuts)
    with pytest.raises(ValueError, match=r"2 x rtx4090 of 23 GiB .* needs at least 7 GPUs: raise parallel.tp or parallel.pp"):
        make_executor(LLAMA_70B, cache=CacheConfig(16), device="rtx4090", tp=2)
    make_executor(LLAMA_70B, cache=CacheConfig(16), device="rtx4090", tp=8)
    with pytest.raises(ValueError, match="memory budget of 1000 bytes holds 0 blocks"):
        make_executor(LLAMA_8B, cache=CacheConfig(16, memory_bytes=1000))
