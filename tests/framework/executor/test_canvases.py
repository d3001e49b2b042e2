"""Block diffusion without a model: how many passes a canvas takes, that nothing around a request changes its tokens, and that a
simulated pass calls what a real one does."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.build import build_engine, build_replicas
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.engine.diffusion import DiffusionConfig
from framework.engine.engine import Engine
from framework.executor.pseudo import PassPlan, pseudo_tokens
from framework.models.architecture import Diffusion
from framework.op_times import OpCall
from framework.sampling_params import RequestOutputKind, SamplingParams
from framework.study.driver import run_workload
from framework.study.workload import WorkloadRequest

from ...models.test_block_diffusion import LLADA2, MASK, SDAR, SIZES, VOCAB
from ..engines import run, tokens
from .simulations import LLAMA_8B, simulated_config

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sdar": {**SIZES, **SDAR},
    "sdar_moe": {**SIZES, **SDAR, **MOE, "model_type": "sdar_moe"},
    "llada2": LLADA2,
    "causal prompts": {**SIZES, **SDAR, "block_causal_prompt": False},
}
SDAR_8B = {**LLAMA_8B, **SDAR, "head_dim": 128, "vocab_size": 151936}


def config(kind: str, architecture: dict[str, Any], passes: float | None = None, **given: Any) -> EngineConfig:
    model = ModelConfig("none", load_format="dummy", dtype="float32", skip_tokenizer=True, architecture=architecture)
    cache = given.pop("cache", CacheConfig(32, num_blocks=200))
    return EngineConfig(model, cache, executor=ExecutorConfig(kind, passes_per_canvas=passes), **given)


def test_the_mask_is_never_made_up() -> None:
    """A canvas that has one is never settled."""
    made_up = pseudo_tokens(np.arange(500, dtype=np.uint64), np.zeros(500, dtype=np.uint64), 8, 3)
    assert set(made_up.tolist()) == set(range(8)) - {3} and VOCAB > 8
    engine = build_engine(config("null", {**ARCHITECTURES["sdar"], "vocab_size": 8, "mask_token_id": 3}, 1.0))
    (output,) = tokens(run(engine, [([5], SamplingParams(max_tokens=200, ignore_eos=True, seed=1))]))
    assert set(output[0]) == set(range(8)) - {3}


@pytest.mark.parametrize(("canvas", "max_passes", "mean"), [(4, 0, 2.3), (4, 0, 4.0), (32, 0, 7.75), (32, 7, 7.0), (5, 2, 1.5)])
def test_a_run_takes_the_mean_number_of_passes(canvas: int, max_passes: int, mean: float) -> None:
    """Over canvases that begin behind whole ones; the numbers are the whole ones around it."""
    architecture = {**ARCHITECTURES["sdar"], "block_size": canvas, "max_position_embeddings": 4096}
    rule = DiffusionConfig(max_passes=max_passes)
    engine = build_engine(config("null", architecture, mean, diffusion=rule, cache=CacheConfig(2 * canvas, num_blocks=2000)))
    count = 20 * canvas * max(1, 10 // canvas)
    run(engine, [([5] * canvas, SamplingParams(max_tokens=count, ignore_eos=True, seed=seed)) for seed in range(40)])
    stats = engine.stats()
    canvases = stats.num_output_tokens / canvas
    assert canvases >= 800
    spread = ((mean % 1) * (1 - mean % 1) / canvases) ** 0.5
    assert stats.num_denoising_passes / canvases == pytest.approx(mean, abs=4 * spread + 1e-9)


def test_each_pass_settles_as_many_and_in_any_order() -> None:
    plan = PassPlan(Diffusion(32, MASK, False), DiffusionConfig(), 5.0)
    order = plan.order(np.arange(500, dtype=np.uint64), np.full(500, 64))
    assert (np.sort(order) == np.arange(32) * 5 // 32).all()
    assert np.abs(order.mean(0) - order.mean()).max() < 4 * order.std() / 500**0.5 and len({*map(bytes, order)}) == 500


@pytest.mark.parametrize("kind", ["null", "simulated"])
@pytest.mark.parametrize("name", ["sdar", "llada2"])
def test_mixes_change_nothing(name: str, kind: str) -> None:
    rng, passes = random.Random(3), 2.5
    jobs = [
        (
            rng.choices((5, 6), k=rng.randint(1, 70)),
            SamplingParams(max_tokens=rng.randint(1, 70), ignore_eos=True, seed=rng.randrange(9)),
        )
        for _ in range(12)
    ]
    alone = build_engine(config("null", ARCHITECTURES[name], passes))
    expected = [tokens(run(alone, [job]))[0] for job in jobs]
    assert all(MASK not in token_ids for (token_ids,) in expected)
    for blocks, scheduler in ((200, SchedulerConfig()), (7, SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=96))):
        engine = build_engine(
            config(kind, ARCHITECTURES[name], passes, cache=CacheConfig(32, num_blocks=blocks), scheduler=scheduler)
        )
        for _ in range(2):
            assert tokens(run(engine, jobs)) == expected
        assert engine.stats().num_preemptions > 0 if blocks == 7 else engine.stats().prefix_hit_tokens > 0
        assert engine.stats().num_denoising_passes == 2 * alone.stats().num_denoising_passes, "a preempted request repeats none"


def calls(engine: Engine) -> Counter[Any]:
    """What was called with what. The first pass over a canvas settles all of it."""
    for index, count in enumerate((9, 70, 33)):
        params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, seed=index)
        engine.add_request(str(index), {"prompt_token_ids": [5 + index] * count}, params)
    while engine.has_unfinished():
        engine.step()
    assert engine.executor.call_times is not None
    found: Counter[Any] = Counter()
    for call, _, _, count in engine.executor.call_times:
        found[in_common(call)] += count
    return found


def in_common(call: OpCall) -> tuple[Any, ...]:
    """Of a call, what executors with a model and without describe alike: lengths of rows where attention sees them, elements of
    norms, which may be of heads."""
    dims = {name: size for name, size in call.dims if name not in ("causal", "ep", "tp", "residual")}
    if call.op == "rms_norm":
        return call.op, dims["hidden_size"] * sum(call.q_lens)
    if call.op.startswith("paged_attention"):
        return call.op, tuple(dims.items()), call.options, call.q_lens, call.ctx_lens
    options = call.options if call.op in ("linear", "gather_logprobs", "embedding", "kv_cache_write") else ()
    return call.op, tuple(dims.items()), options, sum(call.q_lens)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_simulated_pass_calls_what_a_real_one_does(name: str) -> None:
    found = []
    for kind, kernels in (("local", {"default": "reference"}), ("simulated", {})):
        given: dict[str, Any] = {"diffusion": DiffusionConfig(threshold=0.0), "profile": True, "num_threads": int(kind == "local")}
        scheduler = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=80)
        kernels = {**kernels, "qk_norm_rotary_kv_write": "none"}
        found.append(calls(build_engine(config(kind, ARCHITECTURES[name], scheduler=scheduler, kernels=kernels, **given))))
    real, simulated = found
    assert simulated == real and {"sample", "gather_logprobs", "paged_attention_prefill"} <= {op for op, *_ in real}
    assert any(op == "paged_attention_decode" for op, *_ in real) == (name != "llada2"), "canvases of 32 are no decodes"


def time_of(passes: float | None, **given: Any) -> tuple[float, int]:
    """Seconds of 64 tokens for each of 8 requests, and steps."""
    engine = build_engine(simulated_config(SDAR_8B, passes_per_canvas=passes, **given))
    run(engine, [([5] * 8, SamplingParams(max_tokens=64, ignore_eos=True, seed=seed)) for seed in range(8)])
    return engine.clock.now(), engine.stats().num_steps


def test_every_pass_waits_for_the_host() -> None:
    """No step is launched ahead of the one before, and none is recorded."""
    (free_s, steps), (host_s, _), (launched_s, _) = time_of(2.0), time_of(2.0, step_overhead_s=1e-3), time_of(2.0, launch_s=1e-3)
    assert host_s - free_s == pytest.approx(steps * 1e-3)
    num_kernels = 1 + 1 + 32 * 9 + 1 + 1 + 2
    assert launched_s == pytest.approx(steps * num_kernels * 1e-3, rel=0.01)


def test_a_token_takes_as_long_as_its_share_of_passes() -> None:
    times = {passes: time_of(passes)[0] for passes in (1.0, 2.0, 4.0)}
    assert times[4.0] == pytest.approx(4 * times[1.0], rel=0.1) and times[2.0] == pytest.approx(2 * times[1.0], rel=0.1)
    assert time_of(None) == time_of(4.0)


def test_a_study_knows_no_steps_ahead() -> None:
    """Which would decode a token each."""
    params = SamplingParams(max_tokens=64, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
    engine = build_engine(simulated_config(SDAR_8B, passes_per_canvas=2.0))
    run_workload([engine], [WorkloadRequest(0.0, [5] * 8, replace(params, seed=1), 0)])
    assert engine.stats().num_denoising_passes == engine.stats().num_steps == 32


def test_replicas_denoise() -> None:
    given = simulated_config(SDAR_8B, passes_per_canvas=2.0, dp=2)
    for engine in build_replicas(given):
        run(engine, [([5] * 8, SamplingParams(max_tokens=16, ignore_eos=True, seed=1))])
        assert engine.stats().num_denoising_passes == 8


def test_logits_of_canvases_take_memory() -> None:
    plain, canvases = (
        build_engine(simulated_config({**SDAR_8B, "block_size": size}, cache=CacheConfig(64))).executor.num_blocks
        for size in (1, 8)
    )
    token = 32 * 2 * 8 * 128 * 2
    assert plain - canvases == pytest.approx((2048 - 256) * 151936 * 6 / (64 * token), rel=0.01)


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (r"passes_per_canvas=0\.5 cannot work: .*1 or more", {"passes_per_canvas": 0.5}, {}),
    (r"passes_per_canvas=5\.0 cannot work: .*from 1 to 4", {"passes_per_canvas": 5.0}, {}),
    (
        r"passes_per_canvas=3\.0 cannot work: .*from 1 to 2",
        {"passes_per_canvas": 3.0},
        {"diffusion": DiffusionConfig(max_passes=3)},
    ),
    (r"passes_per_canvas=2\.0 cannot work: .*leave 4, whatever", {"passes_per_canvas": 2.0}, {"diffusion": DiffusionConfig(1.0)}),
    (r"passes_per_canvas=2\.0 cannot work: .*leave 1, whatever", {"passes_per_canvas": 2.0}, {"diffusion": DiffusionConfig(0.0)}),
    (r"passes_per_canvas=2\.0 cannot work: .*the model says", {"kind": "local", "passes_per_canvas": 2.0}, {}),
    (r"parallel\.tp=2", {"kind": "simulated"}, {"parallel": ParallelConfig(tp=2)}),
]


@pytest.mark.parametrize(("said", "executor", "given"), REFUSED, ids=[said for said, _, _ in REFUSED])
def test_what_cannot_work_is_refused_by_name(said: str, executor: dict[str, Any], given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=said):
        build_engine(
            replace(config("null", ARCHITECTURES["sdar"]), executor=ExecutorConfig(**{"kind": "null", **executor}), **given)
        )
    with pytest.raises(ValueError, match=r"passes_per_canvas=2\.0 cannot work: .*token by token"):
        build_engine(EngineConfig(executor=ExecutorConfig("null", passes_per_canvas=2.0)))
