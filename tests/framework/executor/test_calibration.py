"""Operator times: what a fit recovers, what a timer says of a call, and what the packaged calibrations say of known calls."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.executor.calibration import Calibration
from framework.executor.kriging import KERNELS, Kriging
from framework.executor.operator_model import OperatorModel
from framework.executor.operators import OPERATORS, Work, by_prompts, expert_load
from framework.executor.physics import Physics, as_array
from framework.executor.simulated_device import SimulatedDevice
from framework.plan import device_model, op_costs

LLAMA = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}


@pytest.fixture(scope="module")
def h200() -> Calibration:
    return Calibration.load("h200", op_costs())


def seconds(calibration: Calibration, op: str, dims: dict[str, float], q_lens: object, ctx_lens: object) -> float:
    timer = calibration.timer(op, "bfloat16", dims)
    assert timer is not None
    return timer(q_lens, ctx_lens)  # type: ignore[arg-type]


def test_physics_recovers_what_made_the_times() -> None:
    rng = np.random.default_rng(1)
    true = Physics(4e-6, 5e14, 3e12, 4e12, 2.0)
    works = [Work(10**f, 10**b, 10**t, ()) for f, b, t in rng.uniform((6, 4, 0), (14, 10, 4), (2000, 3))]
    found = Physics.fitted(as_array(works), np.log([true.seconds(work) for work in works]) + rng.normal(0, 0.02, 2000))
    assert found.numbers()[:4] == pytest.approx(true.numbers()[:4], rel=0.03) and found.sharpness == pytest.approx(2, rel=0.1)


def test_rows_that_were_called_more_often_pull_more() -> None:
    """Calls bound by memory, half of them twice as slow as the others."""
    works = [Work(1.0, 10.0 ** (6 + i / 10), 1, ()) for i in range(40)] * 2
    logs = np.log([(1 + (i >= 40)) * work.bytes / 1e12 for i, work in enumerate(works)])
    for often, bandwidth in ((slice(0, 40), 1e12), (slice(40, 80), 0.5e12)):
        weights = np.ones(80)
        weights[often] = 1000
        assert Physics.fitted(as_array(works), logs, weights).bytes_s == pytest.approx(bandwidth, rel=0.03)


def test_one_call_and_many_cost_the_same() -> None:
    physics = Physics(4e-6, 5e14, 3e12, 4e12, 1.7)
    works = [Work(1e12, 1e9, 100, ()), Work(0, 1e9, 1, ()), Work(0, 0, 1, ())]
    assert np.exp(physics.log_seconds(as_array(works))) == pytest.approx([physics.seconds(work) for work in works])


@pytest.mark.parametrize("kernel", KERNELS)
def test_leaving_a_block_out_is_fitting_without_it(kernel: str) -> None:
    rng = np.random.default_rng(0)
    points, values = rng.normal(size=(12, 2)), rng.normal(size=(12, 3))
    values -= values.mean(0)  # what is left out is then predicted about the same mean
    field = Kriging(points, values, np.array([0.7, 2.0]), 0.01, kernel)
    block = np.array([2, 5, 9])
    rest = np.setdiff1d(np.arange(12), block)
    covariance = np.exp(-distances(points, field.lengths)) if kernel == "rough" else matern(points, field.lengths)
    covariance += 0.01 * np.eye(12)
    weights = np.linalg.solve(covariance[np.ix_(rest, rest)], values[rest])
    assert field.leave_out([block])[block] == pytest.approx(values[block] - covariance[np.ix_(block, rest)] @ weights, abs=1e-9)


def distances(points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return (np.abs(points[:, None] - points[None]) / lengths).sum(-1)


def matern(points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    scaled = np.sqrt(3 * (((points[:, None] - points[None]) / lengths) ** 2).sum(-1))
    return (1 + scaled) * np.exp(-scaled)


def test_a_field_is_judged_by_what_was_measured() -> None:
    """A column of which nothing was measured changes nothing."""
    rng = np.random.default_rng(3)
    points = np.arange(12.0)[:, None]
    smooth, noise = np.sin(points / 2), rng.normal(size=(12, 3))
    alone = Kriging.tuned(points, smooth, np.ones((12, 1), dtype=bool), np.arange(12))
    known = np.zeros((12, 4), dtype=bool)
    known[:, 0] = True
    beside = Kriging.tuned(points, np.hstack([smooth, noise]), known, np.arange(12))
    assert (beside.kernel, beside.noise, *beside.lengths) == (alone.kernel, alone.noise, *alone.lengths)


def test_the_kernel_that_foretells_best_is_taken() -> None:
    """Straight lines between neighbours cut off the crests of a wave."""
    points, everything = np.arange(24.0)[:, None], np.ones((24, 1), dtype=bool)
    assert Kriging.tuned(points, np.sin(points / 3), everything, np.arange(24)).kernel == "smooth"


def test_the_field_goes_through_its_points() -> None:
    points, values = np.array([[0.0], [1.0], [3.0]]), np.array([[1.0], [2.0], [-1.0]])
    field = Kriging(points, values, np.array([1e4]), 1e-9)
    assert field(points) == pytest.approx(values, abs=1e-4)
    assert field(np.array([[0.5], [2.0]])) == pytest.approx(np.array([[1.5], [0.5]]), abs=1e-2), "long lengths: straight lines"


def test_whole_prompts_are_themselves_and_chunks_are_parts_of_one() -> None:
    assert by_prompts({}, [(3, 100, 100)]) == pytest.approx((3, 100))
    first, second = by_prompts({}, [(1, 512, 512)]), by_prompts({}, [(1, 512, 1024)])
    pairs = [prompts * length * (length + 1) / 2 for prompts, length in (first, second)]
    assert sum(pairs) == pytest.approx(1024 * 1025 / 2), "the chunks of a prompt see what the prompt sees"
    assert second == pytest.approx((0.75, 1024), rel=1e-2)


def test_experts_with_work() -> None:
    assert expert_load(1, 128, 8, 1, None) == pytest.approx((8, 8))
    assert expert_load(4, 128, 8, 1, 0.0) == (32, 32) and expert_load(64, 128, 8, 4, 0.0) == (32, 128)
    active, rows = expert_load(64, 128, 8, 4, 1.2)
    assert rows > 128 and active <= 32, "the busiest rank has more than its share"


def test_known_calls(h200: Calibration) -> None:
    """What the measured tables say of an H200, to the few percent that interpolation costs."""
    gemm = {"in_features": 4096, "out_features": 4096}
    assert seconds(h200, "linear", gemm, [64], [64]) == pytest.approx(12.4e-6, rel=0.05)
    assert 2 * 2048 * 4096**2 / seconds(h200, "linear", gemm, 2048, 2048) == pytest.approx(815e12, rel=0.05)
    for context, bandwidth in ((1024, 2.9e12), (4096, 4.0e12), (16384, 4.35e12)):
        moved = 32 * context * 2 * 8 * 128 * 2
        assert moved / seconds(h200, "paged_attention_decode", LLAMA, [1] * 32, [context] * 32) == pytest.approx(
            bandwidth, rel=0.05
        )
    for length, speed in ((1024, 244e12), (4096, 513e12), (16384, 652e12)):
        flops = 4 * 32 * 128 * length * (length + 1) / 2
        assert flops / seconds(h200, "paged_attention_prefill", LLAMA, [length], [length]) == pytest.approx(speed, rel=0.06)
    for graph, elements, us in ((1, 8192, 5.15), (0, 8192, 20.7), (1, 524288, 14.07)):
        assert seconds(h200, "all_reduce", {"num_ranks": 8, "graph": graph}, elements, elements) == pytest.approx(
            us * 1e-6, rel=0.05
        )


def test_forms_of_a_call(h200: Calibration) -> None:
    """Numbers, lists and arrays; all requests and their means; equal batches by either way to sum their work."""
    decode = h200.timer("paged_attention_decode", "float16", {**LLAMA, "window": 0})
    assert decode is not None
    contexts = np.array([100, 2000, 300, 1600])
    expected = decode([1] * 4, contexts.tolist())
    assert decode(np.ones(4, dtype=int), contexts) == expected == decode.of_decode(4, 1000.0)
    assert decode([1], [700]) == decode(1, 700) and decode.calls == 5 and decode.extrapolated == 0
    cost, dims = op_costs()["paged_attention_decode"], {**LLAMA, "window": 512}
    windowed = h200.timer("paged_attention_decode", "bfloat16", dims)
    assert windowed is not None
    found = cost({**dims, "kv_bytes": 2}, [1] * 4, contexts.tolist())
    sizes = (2.0, float(np.log2(1000)))
    work = Work(found.flops, found.bytes, 4 * 8, sizes)
    assert windowed([1] * 4, contexts) == pytest.approx(windowed._model.seconds(work)[0], rel=1e-9), "flops and bytes are kept"
    gemm = h200.timer("linear", "bfloat16", {"in_features": 4096, "out_features": 14336})
    assert gemm is not None and gemm([7, 1, 1], [100, 7, 8]) == gemm.of_tokens(9) == gemm(9, 9)


def test_a_prompt_in_chunks_takes_longer_than_whole_but_not_by_much(h200: Calibration) -> None:
    prefill = h200.timer("paged_attention_prefill", "bfloat16", LLAMA)
    assert prefill is not None
    whole, chunks = prefill(8192, 8192), [prefill(1024, 1024 * (i + 1)) for i in range(8)]
    assert whole < sum(chunks) < 1.5 * whole
    assert chunks == sorted(chunks) and prefill.extrapolated == 0


def test_outside_of_what_was_measured_is_counted(h200: Calibration) -> None:
    decode = h200.timer("paged_attention_decode", "bfloat16", LLAMA)
    assert decode is not None
    inside, beyond = decode(1, 131072), decode(1, 1 << 20)
    assert 4 < beyond / inside < 10 and (decode.calls, decode.extrapolated) == (2, 1), "on and on by its bytes"
    strange = h200.timer("linear", "bfloat16", {"in_features": 8, "out_features": 4096})
    assert strange is not None and strange.of_tokens(1) > 0 and strange.extrapolated == 1
    huge = h200.timer("linear", "bfloat16", {"in_features": 1 << 20, "out_features": 4096})
    assert huge is not None and huge.of_tokens(64) > 0 and huge.extrapolated == 1
    assert decode.of_decode(1 << 14, 1000.0) > 0 and decode.extrapolated == 2, "too many requests"


def test_what_was_not_measured_has_no_timer(h200: Calibration) -> None:
    assert h200.timer("rms_norm", "bfloat16", {"hidden_size": 4096, "residual": 1}) is None
    assert h200.timer("linear", "float32", {"in_features": 4096, "out_features": 4096}) is None
    assert h200.timer("paged_attention_decode", "bfloat16", {**LLAMA, "kv_bytes": 0.5}) is None
    assert 1e-6 < h200.launch_floor_s < 4e-6 and 3e12 < h200.copy_bytes_s <= 4.8e12
    with pytest.raises(ValueError, match="lack num_heads; they have none"):
        h200.timer("mla_decode", "bfloat16", {})
    with pytest.raises(ValueError, match="lack out_features"):
        h200.timer("linear", "bfloat16", {"in_features": 4096})


def test_a_cache_of_bytes_and_a_sharded_layer_are_cheaper(h200: Calibration) -> None:
    contexts = [16384] * 32
    wide = seconds(h200, "paged_attention_decode", LLAMA, [1] * 32, contexts)
    assert 0.5 * wide < seconds(h200, "paged_attention_decode", {**LLAMA, "kv_bytes": 1}, [1] * 32, contexts) < 0.9 * wide
    experts = {"num_experts": 128, "top_k": 8, "hidden_size": 4096, "intermediate_size": 1536}
    for calibration in (h200, Calibration.load("a100", op_costs())):
        timer = calibration.timer("moe_experts", "bfloat16", experts)
        assert timer is not None and timer.of_tokens(64) > 0 and timer.extrapolated == 0, "no popularity need be given"
    whole = seconds(h200, "moe_experts", experts, 256, 256)
    assert seconds(h200, "moe_experts", {**experts, "ep": 8}, 256, 256) < 0.3 * whole


def test_transferred(h200: Calibration) -> None:
    b200 = h200.on(device_model("b200"))
    assert (b200.device, b200.transferred, h200.transferred) == ("b200", True, False) and "h200" in b200.source
    gemm = {"in_features": 8192, "out_features": 8192}
    faster = seconds(h200, "linear", gemm, 8192, 8192) / seconds(b200, "linear", gemm, 8192, 8192)
    assert faster == pytest.approx(2250 / 780, rel=0.02), "bound by arithmetic"
    assert h200.on(device_model("h200")) is h200
    assert b200.copy_bytes_s / h200.copy_bytes_s == pytest.approx(8.0 / 4.3)


def test_transferred_by_the_ceiling_of_each_number_format(h200: Calibration) -> None:
    """To a device with twice the products of bfloat16 and as many of fp8: what is bound by them, and by nothing else."""
    at_peak = Physics(0.0, 1e14, 1e30, 1e30, 50.0)
    models = tuple(
        OperatorModel(op, "bfloat16", {}, "", at_peak, None, (np.array([0.0, 20.0]),), True, np.zeros(2), np.full(2, 20.0))
        for op in ("linear", "gemm_fp8")
    )
    own = {"copy_bytes_s": 1e12, "bf16": 1e14, "fp8": 2e14}
    found = replace(h200, device="lab", models=models, ceilings=own)
    other = SimulatedDevice("other", "", None, 3e12, {"bf16": 2e14, "fp8": 2e14}, 1e11)
    speeds = [model.physics.flops_s / 1e14 for model in found.on(other).models]
    assert speeds == [2.0, 1.0] and found.on(other).copy_bytes_s == pytest.approx(3 * h200.copy_bytes_s)


def test_of_several_parts_of_a_range_the_nearest_counts() -> None:
    """GEMMs of 2^4 to 2^6 outputs by one kernel, of 2^10 to 2^12 by another, ten times as slow."""
    nodes, costs = (np.array([0.0, 20.0]),), op_costs()
    parts = [
        OperatorModel("linear", "bfloat16", {}, name, Physics(floor_s, 1e30, 1e30, 1e30, 2.0), None, nodes, True, low, low + 2)
        for name, floor_s, low in (("a", 1e-6, np.array([4.0, 5.0])), ("b", 1e-5, np.array([10.0, 5.0])))
    ]
    calibration = Calibration("lab", "by hand", tuple(parts), 1e-6, 1e12, None, costs)
    for out_features, floor_s, outside in ((32, 1e-6, 0), (2048, 1e-5, 0), (128, 1e-6, 1), (512, 1e-5, 1), (8192, 1e-5, 1)):
        timer = calibration.timer("linear", "bfloat16", {"out_features": out_features, "in_features": 64})
        assert timer is not None
        assert (timer.of_tokens(64), timer.extrapolated) == (pytest.approx(floor_s), outside)


def test_round_trip(h200: Calibration, tmp_path: Path) -> None:
    for name in ("again.json.gz", "again.json"):
        h200.save(tmp_path / name)
        again = Calibration.load(str(tmp_path / name), op_costs())
        gemm = {"in_features": 5000, "out_features": 3000}
        assert seconds(again, "linear", gemm, 100, 100) == pytest.approx(seconds(h200, "linear", gemm, 100, 100), rel=1e-5)
        assert again.device == "h200" and again.ceilings == h200.ceilings


def test_loading_is_fast() -> None:
    before = time.process_time()
    Calibration.load("h200", op_costs())
    assert time.process_time() - before < 0.3


def test_errors_of_loading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are a100, h200, and no such file"):
        Calibration.load("h2000", {})
    no_models, half_a_model = b'{"version": 1}', b'{"version": 1, "models": [{"op": "linear"}]}'
    wrong = {"a.json": b"{", "b.json.gz": b"no gzip", "c.json": b"[1]", "d.json.gz": gzip.compress(b"{}")}
    for name, content in (wrong | {"e.json": no_models, "f.json": half_a_model}).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no calibration"):
            Calibration.load(str(tmp_path / name), {})
    (tmp_path / "old.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(ValueError, match="version 0"):
        Calibration.load(str(tmp_path / "old.json"), {})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"launch_floor_s": -1e-6}, "launch_floor_s is -1e-06, expected a number of 0 or more"),
        ({"copy_bytes_s": "4e12"}, "copy_bytes_s is 4e12, expected a number above 0"),
        ({"ceilings": {"copy_bytes_s": 1e12, "bf16": 0}}, "ceilings.bf16 is 0, expected a number above 0"),
        ({"physics": [1e-6, 0, 1e12, 1e12, 2]}, r"models.0. .rms_norm.: physics.flops_s is 0, expected a number above 0"),
        ({"physics": [1e-6, 1e14, 1e12, float("nan"), 2]}, r"models.0. .rms_norm.: physics.tile_flops_s is nan"),
        ({"nodes": [[3, 2]]}, r".rms_norm.: expected a range of 1 dims, and 1 rising lists of nodes"),
        ({"lengths": [-1, 1]}, r".rms_norm.: field.lengths is \[-1, 1\], expected numbers above 0"),
        ({"values": [1, 2]}, r".rms_norm.: expected field.points of 2 coordinates, as many lengths, and 1 values per point"),
        ({"values": [0, 0, 1 << 20, 0]}, r".rms_norm.: field.values reach 1.04858e\+06, expected 10000 at most"),
        ({"kernel": "round"}, r".rms_norm.: field.kernel is 'round', expected rough or smooth"),
    ],
)
def test_numbers_that_no_fit_writes_are_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "lab.json"
    norms(2).save(path)
    whole = json.loads(path.read_text())
    for part in (whole, whole["models"][0], whole["models"][0]["field"]):
        part.update((name, value) for name, value in change.items() if name in part)
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=f"lab.json is no calibration .*{complaint}"):
        Calibration.load(str(path), {})


def norms(num_points: int) -> Calibration:
    """Of one op, of which four calls were measured, with one dim."""
    points, values = np.array([[float(i // 2), float(i % 2)] for i in range(4)]), np.zeros((4, 1))
    field = Kriging(points, values, np.ones(num_points), 0.1)
    physics, nodes = Physics(1e-6, 1e14, 1e12, 1e12, 2.0), (np.array([0.0, 1.0]),)
    model = OperatorModel("rms_norm", "bfloat16", {}, "", physics, field, nodes, False, np.zeros(1), np.ones(1))
    return Calibration("lab", "by hand", (model,), 1e-6, 1e12, None, op_costs())


def test_an_op_with_other_dims_was_not_measured() -> None:
    """A norm that quantizes its output has a dim more than those whose times are known."""
    dims = {"hidden_size": 2.0}
    assert norms(2).timer("rms_norm", "bfloat16", dims) is not None
    assert norms(2).timer("rms_norm", "bfloat16", {**dims, "num_scales": 1}) is None


def test_the_work_of_ops_that_are_not_built_by_hand() -> None:
    """Of 4 requests of 3 tokens with a state of 32 heads x 128 x 128 float32 each, read and written once; of weights and
    activations of 4 bits with a scale of 8 bits for 16 of them."""
    delta = OPERATORS["gated_delta_prefill"].measure(None, {"num_k_heads": 16, "num_v_heads": 32}, [(4, 3, 3)])
    assert delta.bytes == 12 * (2 * 16 + 2 * 32) * 128 * 2 + 4 * 2 * 4 * 32 * 128 * 128
    gemm = OPERATORS["gemm_nvfp4"].measure(None, {"out_features": 64.0, "in_features": 32.0}, [(1, 5, 5)])
    assert (gemm.flops, gemm.bytes) == (2 * 5 * 64 * 32, (64 * 32 + 5 * 32) * (4 + 8 / 16) / 8 + 5 * 64 * 2)


def test_every_op_names_what_its_work_needs() -> None:
    """The dims that shape and formats name are enough to say what a call costs."""
    costs = op_costs()
    for op, spec in OPERATORS.items():
        dims = {name: 8.0 for name in spec.shape if name not in ("grouped", "local_experts", "skew", "window")}
        dims |= {"num_experts": 16.0, "ep": 1.0} if op == "moe_experts" else {}
        if spec.cost is None and op not in costs:
            continue
        work = spec.measure(costs.get(op), dims, [(2, 4, 64)])
        assert work.bytes > 0 and len(work.sizes) == len(spec.sizes({}, [(1, 1, 1)])), op
