"""Simulated executors and engines of known models, for the tests of this folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from framework.clock import VirtualClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, GraphConfig, ModelConfig, ParallelConfig
from framework.engine.engine import Engine
from framework.engine.step import NewRequest, StepInput
from framework.executor.simulated import SimulatedExecutor
from framework.executor.simulated_device import simulated_device
from framework.executor.timers import Timers
from framework.models.read import read_model
from framework.op_times import OpTimes
from framework.plan import op_costs
from framework.sampling_params import SamplingParams

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "dtype": "bfloat16",
}
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
QWEN_MOE = {
    **LLAMA_8B,
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "head_dim": 128,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}

DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "dtype": "bfloat16",
}


def simulated_config(architecture: dict[str, Any], **given: Any) -> EngineConfig:
    """Times are those of the device table, of which all is reached; the host takes none. Keys of ``ExecutorConfig`` and
    ``ParallelConfig`` may be given beside those of ``EngineConfig``."""
    executor = ExecutorConfig("simulated", "h200", "roofline", 1.0, 0.0, 0.0, 0.0)
    names = set(given) & set(ExecutorConfig.__dataclass_fields__)
    executor = replace(executor, **{name: given.pop(name) for name in names})
    if executor.calibration != "roofline":
        executor = replace(executor, efficiency=ExecutorConfig.efficiency, kernel_overhead_s=ExecutorConfig.kernel_overhead_s)
    cuts = {name: given.pop(name) for name in set(given) & set(ParallelConfig.__dataclass_fields__)}
    values = {"cache": CacheConfig(16, num_blocks=4096), "executor": executor, "parallel": ParallelConfig(**cuts), **given}
    return EngineConfig(ModelConfig("model", load_format="dummy", architecture=architecture), **values)


def make_executor(architecture: dict[str, Any], **given: Any) -> SimulatedExecutor:
    """As ``simulated_config`` says; validated."""
    config = simulated_config(architecture, **given)
    config.validate()
    return SimulatedExecutor(config, read_model(config.model), VirtualClock())


def make_timers(architecture: dict[str, Any]) -> Timers:
    """Of the device of ``simulated_config``."""
    config, costs = simulated_config(architecture).executor, op_costs()
    return Timers(config, simulated_device(config, costs), costs)


def decode_step(step_id: int, seats: list[int], context: int = 0, num_drafts: int = 0) -> StepInput:
    """Of these seats; context: tokens in the cache of new requests that take them, 0 = they are there already."""
    new = [NewRequest(s, "", [0] * (context + 1), context, context, [[1]], SamplingParams(seed=s)) for s in seats if context]
    rows = [1 + num_drafts] * len(seats)
    return StepInput(step_id, seats, rows, rows, new, num_proposals=num_drafts)


def prompt_step(step_id: int, seat: int, num_tokens: int) -> StepInput:
    """A new request's whole prompt."""
    new = [NewRequest(seat, "", [0] * num_tokens, num_tokens, 0, [[1]], SamplingParams(seed=seat))]
    return StepInput(step_id, [seat], [num_tokens], [1], new)


def called(engine: Engine, ops: Collection[str]) -> Counter[Any]:
    """Calls of attention and of ``ops``, with what says how long each takes: of norms not whether they add, of linear layers not
    whether they have a bias, for which the simulator takes the same."""
    found: Counter[Any] = Counter()
    assert isinstance(engine.executor.call_times, OpTimes)
    for call, _, _, count in engine.executor.call_times:
        dims = tuple((name, value) for name, value in call.dims if name != "residual")
        if call.op.startswith("paged_attention"):
            found[call.op, dims, call.options, call.q_lens, call.ctx_lens] += count
        elif call.op in ops:
            found[call.op, dims, sum(call.q_lens)] += count
    return found


EAGER = GraphConfig(enabled=False)
