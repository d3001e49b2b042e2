"""The simulated executor: time comes from the roofline, passes under a virtual clock, and grows with load."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.build import build_engine
from framework.clock import VirtualClock, WallClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, GraphConfig, ModelConfig, QuantConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.prompts import EngineInput
from framework.engine.step import StepInput
from framework.executor.calibration import Calibration
from framework.executor.simulated import SimulatedExecutor
from framework.models.read import read_model
from framework.outputs import RequestMetrics
from framework.plan import op_costs
from framework.sampling_params import RequestOutputKind, SamplingParams

from .simulations import EAGER, LLAMA_8B, LLAMA_70B, decode_step, make_executor, prompt_step

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


@pytest.mark.parametrize("window", [1, 4, 16, 48, 63, 100])
def test_a_small_window_is_timed_at_its_length(window: int) -> None:
    """A decode that sees as many tokens as the window takes what one with so long a context takes, with one guess and without."""
    windowed = make_executor({**LLAMA_8B, "model_type": "mistral", "sliding_window": window})
    full = make_executor(LLAMA_8B)
    windowed.submit(decode_step(0, list(range(64)), 5000))
    full.submit(decode_step(0, list(range(64)), window - 1))
    seconds = [executor.op_times()["paged_attention_decode"].seconds for executor in (windowed, full)]
    assert seconds[0] == pytest.approx(seconds[1], rel=1e-6) if window > 2 else seconds[0] <= seconds[1]
    assert seconds[0] > 64 * window * KV_BYTES_PER_TOKEN / COPY_BYTES_S


def test_experts_read_only_what_is_chosen() -> None:
    moe = {**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    dense, experts = tpot_s(serve(make_engine(), [0.0], 10, 20)[0]), tpot_s(serve(make_engine(moe), [0.0], 10, 20)[0])
    assert experts - dense == pytest.approx(32 * 3 * 4096 * 14336 * 2 / COPY_BYTES_S, rel=0.05), "two experts, not one MLP"


def test_the_times_of_ops_add_up_to_the_time_of_a_step() -> None:
    executor = make_executor(LLAMA_8B, kernel_overhead_s=1e-6)
    for step in (prompt_step(0, 0, 300), decode_step(1, [0]), decode_step(2, [0])):
        executor.submit(step).result()
    times = executor.op_times()
    assert sum(time.seconds for time in times.values()) == pytest.approx(executor.clock.now())
    assert {op: time.calls for op, time in times.items()} == {
        "slot_mapping": 3,
        "embedding": 3,
        "rms_norm": 3 * 65,
        "linear": 3 * (4 * 32 + 1),
        "qk_norm_rotary_kv_write": 3 * 32,
        "paged_attention_prefill": 32,
        "paged_attention_decode": 2 * 32,
        "silu_and_mul": 3 * 32,
        "sample": 3,
    }


def test_a_scaled_op_takes_so_much_more_and_others_as_much() -> None:
    found = []
    scales = {"linear": 2.0, "paged_attention_decode": 3.0, "sample": 0.0}
    for scale in ({}, scales):
        executor = make_executor(LLAMA_8B, op_scale=scale)
        executor.submit(decode_step(0, [0, 1], 500))
        found.append({op: time.seconds for op, time in executor.op_times().items()})
    plain, scaled = found
    assert scaled == pytest.approx({op: scales.get(op, 1.0) * seconds for op, seconds in plain.items()})
    with pytest.raises(ValueError, match=r"executor.op_scale.moe_experts .* call embedding, linear, paged_attention_decode"):
        make_executor(LLAMA_8B, op_scale={"moe_experts": 2.0})


def test_noise_spreads_the_logarithm_of_a_steps_time() -> None:
    def gaps(seed: int, noise: float) -> np.ndarray:
        executor, ends = make_executor(LLAMA_8B, noise=noise, seed=seed), []
        executor.submit(decode_step(0, [0], 10)).result()
        for step in range(1, 2002):
            executor.submit(decode_step(step, [0])).result()
            ends.append(executor.clock.now())
        return np.diff(ends)

    noisy, quiet = gaps(0, 0.1), gaps(0, 0.0)
    logs = np.log(noisy / quiet)
    assert logs.std() == pytest.approx(0.1, rel=0.06) and abs(logs.mean()) < 0.01
    assert (gaps(0, 0.1) == noisy).all() and (gaps(1, 0.1) != noisy).all()


@pytest.mark.parametrize("host", [{"step_overhead_s": 1.0}, {"launch_s": 1.0}])
def test_noise_is_on_the_hosts_time_too(host: dict[str, float]) -> None:
    """Beside which the device's is nothing."""
    executor, ends = make_executor(LLAMA_8B, noise=0.1, efficiency=1e9, **host), []
    executor.submit(decode_step(0, [0], 10)).result()
    for step in range(1, 502):
        executor.submit(decode_step(step, [0])).result()
        ends.append(executor.clock.now())
    assert np.log(np.diff(ends)).std() == pytest.approx(0.1, rel=0.12)


def test_a_batch_of_requests_takes_the_least_time_of_a_kernel_once() -> None:
    executor = make_executor(LLAMA_8B, kernel_overhead_s=1e-3, efficiency=1e9)
    executor.submit(decode_step(0, list(range(16)), 100))
    assert executor.op_times()["paged_attention_decode"].seconds == pytest.approx(32 * 1e-3)


def test_recordings_take_one_launch_and_other_steps_one_per_kernel() -> None:
    """Launches of 1 ms, beside which the device's time is nothing. The tokens are chosen outside of recordings."""

    def launches(step: StepInput, **given: Any) -> float:
        executor = make_executor(LLAMA_8B, launch_s=1e-3, efficiency=1e6, **given)
        executor.submit(step).result()
        return executor.clock.now() / 1e-3

    num_kernels = 1 + 1 + 32 * 9 + 1 + 1 + 1  # of a step: slots, embedding, layers, norm, logits, tokens
    assert launches(decode_step(0, [0, 1], 100)) == pytest.approx(2)
    assert launches(decode_step(0, [0, 1], 100), graphs=EAGER) == pytest.approx(num_kernels)
    assert launches(prompt_step(0, 0, 100)) == pytest.approx(num_kernels)
    few = GraphConfig(batch_sizes=[1, 4])
    assert launches(decode_step(0, [0, 1, 2], 100), graphs=few) == pytest.approx(2)
    assert launches(decode_step(0, [0, 1, 2, 3, 4], 100), graphs=few) == pytest.approx(num_kernels)


def test_the_device_hides_launches_that_are_shorter() -> None:
    executors = [make_executor(LLAMA_8B, launch_s=launch_s, graphs=EAGER) for launch_s in (0.0, 2e-6, 1e-4)]
    for executor in executors:
        executor.submit(decode_step(0, [0], 100)).result()
    free, hidden, bound = (executor.clock.now() for executor in executors)
    assert free == hidden and bound == pytest.approx(293 * 1e-4)


def test_a_recording_computes_rows_of_padding() -> None:
    found = []
    for sizes, rows in (([64, 256], 256), ([64, 256], 65), ([64, 256], 64)):
        executor = make_executor(LLAMA_8B, graphs=GraphConfig(batch_sizes=sizes))
        executor.submit(decode_step(0, list(range(rows)), 100))
        found.append(executor.op_times())
    full, padded, exact = (times["silu_and_mul"].seconds for times in found)
    assert full == padded == pytest.approx(4 * exact)
    assert found[1]["paged_attention_decode"].seconds == pytest.approx(65 / 256 * found[0]["paged_attention_decode"].seconds)


@pytest.mark.parametrize(
    ("scheme", "op", "weight_bytes"),
    [
        ("none", "linear", 2),
        ("rtn-int4", "gemm_w4a16", 0.5),
        ("int8-weight", "gemm_w8a16", 1),
        ("int8", "gemm_int8", 1),
        ("fp8", "gemm_fp8", 1),
    ],
)
def test_quantized_weights_are_read_as_they_are_stored(scheme: str, op: str, weight_bytes: float) -> None:
    executor = make_executor(LLAMA_8B, quant=QuantConfig(scheme))
    executor.submit(decode_step(0, [0], 100))
    times, head = executor.op_times(), 128256 * 4096
    seconds = times[op].seconds - (2 * head / COPY_BYTES_S if op == "linear" else 0)
    assert seconds == pytest.approx((NUM_WEIGHTS - head) * weight_bytes / COPY_BYTES_S, rel=0.04)
    assert times["linear"].calls == (129 if op == "linear" else 1)
    assert ("quantize_activation" in times) == (scheme in ("int8", "fp8"))
    if scheme == "int8":
        assert times["quantize_activation"].calls == 32, "norms and activations do it themselves, attention does not"
        alone = make_executor(LLAMA_8B, quant=QuantConfig(scheme, fuse=False))
        alone.submit(decode_step(0, [0], 100))
        assert alone.op_times()["quantize_activation"].calls == 4 * 32


def test_what_a_time_rests_on_is_told() -> None:
    def chosen(**given: Any) -> dict[str, str]:
        executor = make_executor(LLAMA_8B, **given)
        executor.submit(decode_step(0, [0], 100))
        return {op: entry["chosen"] for op, entry in executor.plan_report().items()}

    measured = chosen(calibration="auto")
    assert measured["linear"].startswith("calibrated") and measured["rms_norm"].startswith("estimated")
    moved = chosen(calibration="auto", device="b200")
    assert moved["linear"].startswith("transferred") and "transferred" in moved["rms_norm"]
    assert chosen(calibration="h200", device="h200") == measured
    for device, nearest in (("b200", "h200"), ("rtx4090", "a100")):  # by the speed of memory: 8 and 1 TB/s beside 4.3 and 2
        executor = make_executor(LLAMA_8B, calibration="auto", device=device)
        executor.submit(decode_step(0, [0], 100))
        assert f"transferred from {nearest}" in executor.plan_report()["linear"]["origin"]
    assert set(chosen().values()) == {"roofline"} and set(chosen(calibration="free").values()) == {"free"}
    executor = make_executor(LLAMA_8B, calibration="auto")
    executor.submit(decode_step(0, list(range(256)), 1000))
    assert "extrapolated" not in executor.plan_report()["paged_attention_decode"]["chosen"]
    executor.submit(decode_step(2, list(range(8)), 20))
    assert "extrapolated" not in executor.plan_report()["paged_attention_decode"]["chosen"], "from 2 tokens on was measured"
    executor._tokens.lengths += 1_000_000
    executor.submit(decode_step(1, list(range(256))))
    assert "extrapolated" in executor.plan_report()["paged_attention_decode"]["chosen"]


def test_products_that_were_not_measured_reach_what_similar_ones_reach() -> None:
    """Against the H200's peak of 1979 TOP/s a product of int8 would be 1.7 times as fast as the measured one of fp8."""

    def found(scheme: str, device: str = "h200") -> tuple[float, str]:
        executor = make_executor(LLAMA_8B, calibration="auto", device=device, quant=QuantConfig(scheme))
        executor.submit(prompt_step(0, 0, 4096))
        report = executor.plan_report()
        op = next(op for op in report if op.startswith("gemm_")) if scheme != "none" else "linear"
        return report[op]["seconds"], report[op]["chosen"]

    bf16, fp8, int8, int4 = (found(scheme) for scheme in ("none", "fp8", "int8", "rtn-int4"))
    assert int8[0] == pytest.approx(fp8[0], rel=0.01), "ceilings and bytes are the same"
    assert int8[1] == "estimated after gemm_fp8 bfloat16 group_rows=0, not measured (calibrated)"
    assert int4[0] == pytest.approx(bf16[0], rel=0.06), "limited by arithmetic, which is that of bfloat16"
    assert int4[1] == "estimated after linear bfloat16, not measured (calibrated)"
    a100 = found("int8", "a100")
    assert a100[1] == int4[1] and found("none", "a100")[0] / a100[0] == pytest.approx(2, rel=0.1), "by the ceilings, 624 and 312"


def test_a_70b_model_on_8_devices_reads_its_weights_in_the_time_that_was_measured() -> None:
    """5.86 ms at 64 rows, from the measured products of an H200."""
    executor = make_executor(LLAMA_70B, calibration="auto", tp=8)
    executor.submit(decode_step(0, list(range(64)), 64))
    assert executor.op_times()["linear"].seconds == pytest.approx(5.86e-3, rel=0.15)


def test_a_calibration_of_a_device_that_is_in_no_table(tmp_path: Path) -> None:
    found = Calibration.load("h200", op_costs())
    replace(found, device="lab", ceilings=None).save(tmp_path / "lab.json")
    given = {"calibration": str(tmp_path / "lab.json"), "device": "lab"}
    known, unknown = make_executor(LLAMA_8B, calibration="h200"), make_executor(LLAMA_8B, **given)
    for executor in (known, unknown):
        executor.submit(decode_step(0, [0], 100))
    assert unknown.op_times()["linear"].seconds == known.op_times()["linear"].seconds
    assert unknown.plan_report()["linear"]["impl"] == "simulated lab"
    with pytest.raises(ValueError, match=r"executor.device=lab .* give cache.num_blocks or cache.memory_bytes"):
        make_executor(LLAMA_8B, cache=CacheConfig(16), **given)
    with pytest.raises(ValueError, match=r"'lab' is not in the device table"):
        make_executor(LLAMA_8B, device="lab")
    with pytest.raises(ValueError, match=r"executor.noise=3.0 .* from 0 to 2"):
        make_executor(LLAMA_8B, noise=3.0)
    with pytest.raises(ValueError, match=r"no calibration 'h100'"):
        make_executor(LLAMA_8B, calibration="h100")


def test_a_step_costs_little_and_a_request_less() -> None:
    """Of the host's real time; generously, because other programs may run."""

    def seconds(num_requests: int) -> float:
        executor = make_executor(LLAMA_70B, calibration="auto", tp=8)
        seats = list(range(num_requests))
        executor.submit(decode_step(0, seats, 1000))
        step, best = decode_step(1, seats), float("inf")
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(20):
                executor.submit(step).result()
            best = min(best, (time.perf_counter() - start) / 20)
        return best

    alone, many = seconds(1), seconds(256)
    assert alone < 60e-6 and (many - alone) / 255 < 1e-6


def test_devices_and_clocks_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"abacus.*h200"):
        make_engine(device="abacus")
    config = EngineConfig(cache=CacheConfig(block_size=64), executor=ExecutorConfig(kind="simulated"))
    with pytest.raises(ValueError, match="virtual clock"):
        build_engine(config, WallClock())
    assert isinstance(SimulatedExecutor(config, read_model(config.model), VirtualClock()).plan_report(), dict)
