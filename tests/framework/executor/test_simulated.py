"""The simulated executor: time comes from the roofline, passes under a virtual clock, and grows with load."""

from __future__ import annotations

from typing import Any

import pytest

from framework.build import build_engine
from framework.clock import VirtualClock, WallClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.inputs import EngineInput
from framework.executor.simulated import SimulatedExecutor
from framework.models.architecture import read_model
from framework.outputs import RequestMetrics
from framework.sampling_params import RequestOutputKind, SamplingParams

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
NUM_WEIGHTS = 32 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336) + 128256 * 4096  # of all products
KV_BYTES_PER_TOKEN = 32 * 2 * 8 * 128 * 2
COPY_BYTES_S, BF16_FLOPS_S = 4.3e12, 780e12  # of the h200 in the device table


def make_engine(architecture: dict[str, Any] | None = None, **given: Any) -> Engine:
    executor = {name: given.pop(name) for name in list(given) if name in ExecutorConfig.__dataclass_fields__}
    config = EngineConfig(
        model=ModelConfig(load_format="dummy", architecture=architecture or LLAMA_8B),
        cache=CacheConfig(memory_bytes=1 << 34),
        scheduler=SchedulerConfig(**given),
        executor=ExecutorConfig(
            **{
                "kind": "simulated",
                "calibration": "roofline",
                "efficiency": 1.0,
                "step_overhead_s": 0.0,
                "launch_s": 0.0,
                "kernel_overhead_s": 0.0,
                **executor,
            }
        ),
    )
    return build_engine(config)


def serve(engine: Engine, arrivals_s: list[float], num_prompt: int, num_output: int) -> list[RequestMetrics]:
    """Different prompts that arrive at these times."""
    params = SamplingParams(max_tokens=num_output, detokenize=False, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY)
    found: dict[str, RequestMetrics] = {}
    pending = [(arrival_s, index) for index, arrival_s in enumerate(arrivals_s)]
    while pending or engine.has_unfinished():
        if not engine.has_unfinished():
            engine.clock.advance_to(pending[0][0])
        while pending and pending[0][0] <= engine.clock.now():
            arrival_s, index = pending.pop(0)
            engine.add_request(str(index), EngineInput([index + 1] * num_prompt), params, arrival_s=arrival_s)
        for output in engine.step():
            assert output.metrics is not None
            found[output.request_id] = output.metrics
    return [found[str(index)] for index in range(len(arrivals_s))]


def tpot_s(metrics: RequestMetrics) -> float:
    times = metrics.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1)


def mean_ttft_s(found: list[RequestMetrics]) -> float:
    return sum(metrics.token_times_s[0] - metrics.arrival_s for metrics in found) / len(found)


def test_one_stream_decodes_at_the_memory_roofline() -> None:
    (metrics,) = serve(make_engine(), [0.0], 100, 65)
    weights_s = 2 * NUM_WEIGHTS / COPY_BYTES_S
    assert tpot_s(metrics) == pytest.approx(weights_s + 132 * KV_BYTES_PER_TOKEN / COPY_BYTES_S, rel=0.01)


def test_a_prompt_takes_the_compute_roofline() -> None:
    (metrics,) = serve(make_engine(max_num_batched_tokens=8192), [0.0], 4096, 1)
    attention = 32 * 4 * 32 * 128 * 4096 * 4097 / 2
    products = 2 * 4096 * (NUM_WEIGHTS - 128256 * 4096)
    assert metrics.first_token_s is not None
    assert metrics.first_token_s == pytest.approx((products + attention) / BF16_FLOPS_S, rel=0.1), "the rest is elementwise"


def test_time_to_first_token_grows_with_load_and_throughput_saturates() -> None:
    loads = {rate: serve(make_engine(max_num_seqs=64), [i / rate for i in range(60)], 500, 30) for rate in (2, 20, 200)}
    ttft = {rate: mean_ttft_s(found) for rate, found in loads.items()}
    assert ttft[2] < ttft[20] < ttft[200] and ttft[200] > 5 * ttft[2]
    tpot = {rate: sum(map(tpot_s, found)) / len(found) for rate, found in loads.items()}
    assert tpot[2] < tpot[20] < tpot[200]


def test_the_same_run_takes_the_same_time() -> None:
    runs = [serve(make_engine(), [0.0, 0.01, 0.02], 50, 10) for _ in range(2)]
    assert runs[0] == runs[1]


def test_several_steps_in_flight_hide_the_hosts_time() -> None:
    times = {}
    for depth in (1, 2):
        engine = make_engine(step_overhead_s=1e-3, in_flight_steps=depth)
        times[depth] = tpot_s(serve(engine, [0.0], 10, 50)[0])
    assert times[1] - times[2] == pytest.approx(1e-3, rel=0.1)


def test_overheads_and_efficiency() -> None:
    ideal = tpot_s(serve(make_engine(), [0.0], 10, 20)[0])
    half = tpot_s(serve(make_engine(efficiency=0.5), [0.0], 10, 20)[0])
    calls = tpot_s(serve(make_engine(kernel_overhead_s=1e-6), [0.0], 10, 20)[0])
    assert half == pytest.approx(2 * ideal)
    assert 32 * 8 < (calls - ideal) / 1e-6 < 32 * 12


def test_a_window_bounds_what_a_decode_reads() -> None:
    mistral = {**LLAMA_8B, "model_type": "mistral", "sliding_window": 256}
    windowed = tpot_s(serve(make_engine(mistral), [0.0], 8000, 20)[0])
    full = tpot_s(serve(make_engine(), [0.0], 8000, 20)[0])
    assert full - windowed == pytest.approx((8010 - 256) * KV_BYTES_PER_TOKEN / COPY_BYTES_S, rel=0.02)


def test_experts_read_only_what_is_chosen() -> None:
    moe = {**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    dense, experts = tpot_s(serve(make_engine(), [0.0], 10, 20)[0]), tpot_s(serve(make_engine(moe), [0.0], 10, 20)[0])
    assert experts - dense == pytest.approx(32 * 3 * 4096 * 14336 * 2 / COPY_BYTES_S, rel=0.05), "two experts, not one MLP"


def test_devices_and_clocks_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"abacus.*h200"):
        make_engine(device="abacus")
    config = EngineConfig(cache=CacheConfig(block_size=64), executor=ExecutorConfig(kind="simulated"))
    with pytest.raises(ValueError, match="virtual clock"):
        build_engine(config, WallClock())
    assert isinstance(SimulatedExecutor(config, read_model(config.model), VirtualClock()).plan_report(), dict)
