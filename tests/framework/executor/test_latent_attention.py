"""Latent attention without a device: what it keeps, what it costs, and which kernels it calls."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from framework.config import CacheConfig, EngineConfig, ModelConfig
from framework.engine.kv_cache.spec import group_layers, token_bytes
from framework.executor.calls import CallList
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.ranks import stages
from framework.models.read import read_model
from framework.plan import KernelPlan, op_costs

from ..models.harness import Session
from .simulations import DEEPSEEK_V3, decode_step, make_executor, simulated_config

TINY = {
    **DEEPSEEK_V3,
    "dtype": "float32",
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 16,
    "moe_intermediate_size": 40,
    "max_position_embeddings": 64,
}
QUERIES_APART = {**TINY, "q_lora_rank": None}


@pytest.mark.parametrize("tp", [1, 8])
def test_a_token_of_deepseek_v3_takes_1152_bytes_in_a_layer(tp: int) -> None:
    executor = make_executor(DEEPSEEK_V3, tp=tp, cache=CacheConfig(64, num_blocks=4096))
    assert token_bytes(executor.groups) == 1152 == 2 * (512 + 64)
    assert [len(group.layers) for group in executor.groups] == [61]


def test_a_quantized_cache_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache\.dtype=int8 cannot work: the model keeps keys and values as one latent"):
        make_executor(DEEPSEEK_V3, cache=CacheConfig(64, num_blocks=64, dtype="int8"))
    config = simulated_config(TINY, cache=CacheConfig(dtype="float8_e4m3fn"))
    info, cpu = read_model(config.model), torch.device("cpu")
    plan = KernelPlan({}, [], cpu, torch.float32)
    with pytest.raises(ValueError, match=r"cache\.dtype=float8_e4m3fn cannot work"):
        load_model(config.model, info, plan, cpu, Parallel(), 16, cache_dtype="float8_e4m3fn")
    assert not plan.bound, "before any weight is read"


def test_attention_reads_a_latent_once_for_keys_and_values() -> None:
    dims = {"num_heads": 128, "num_kv_heads": 1, "head_dim": 576, "value_dim": 512, "aliased": 1}
    decode = op_costs()["paged_attention_decode"](dims, [1] * 64, [4096] * 64)
    rows = 64 * 128 * (576 + 512)
    assert decode.bytes == 64 * 4096 * 1152 + 2 * rows
    assert decode.flops == 2 * rows * 4096
    write = op_costs()["kv_cache_write"](dims, [64], [64])
    assert write.bytes == 2 * 64 * 1152


def test_decoding_reads_as_many_bytes_as_are_cached() -> None:
    """Of 128 heads that share a key, products take longer than reading it."""
    executor = make_executor(DEEPSEEK_V3, tp=8, cache=CacheConfig(64, num_blocks=1 << 16))
    executor.submit(decode_step(0, list(range(64)), context=4095)).result()
    ceilings = 4.3e12, 780e12  # bytes and bf16 operations per second of an H200
    found = executor._placement.op_times()["paged_attention_decode"]
    assert found.calls == 61
    moved, flops = 64 * 4096 * 1152 + 2 * 64 * 16 * 1088, 2 * 64 * 16 * 1088 * 4096
    assert found.seconds / 61 == pytest.approx(max(moved / ceilings[0], flops / ceilings[1]), rel=0.02)


@pytest.mark.parametrize("architecture", [TINY, QUERIES_APART])
def test_the_calls_are_those_of_the_native_decoder(architecture: dict[str, Any]) -> None:
    model = ModelConfig("model", load_format="dummy", architecture=architecture)
    info, cpu = read_model(model), torch.device("cpu")
    plan = KernelPlan({}, [], cpu, torch.float32)
    decoder = load_model(model, info, plan, cpu, Parallel(), 4)
    decoder.set_groups(group_layers(decoder.cache_specs()))
    session = Session(decoder, 2)
    session.step([(0, [3, 4, 5]), (1, [6])])
    before = {op: entry["calls"] for op, entry in plan.report().items()}
    session.step([(0, [7]), (1, [8])])
    called = {op: entry["calls"] - before[op] for op, entry in plan.report().items()}
    assert info.architecture is not None
    [stage] = stages(info.architecture, 1)
    calls = CallList(info, info.architecture, EngineConfig(model), fused=False).stage(stage)
    simulated = Counter(dict.fromkeys(called, 0))
    for call, count in calls.items():
        simulated[call.op] += count
    apart = ("slot_mapping", "sample", "paged_attention_prefill")  # which no such step calls, or the model does not
    assert {op: n for op, n in called.items() if n} == {op: n for op, n in simulated.items() if n and op not in apart}
