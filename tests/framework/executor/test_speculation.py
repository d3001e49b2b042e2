"""Guesses accepted at given rates: how many tokens a step brings, and what drafting and checking take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.build import build_engine, build_replicas
from framework.config import CacheConfig, SchedulerConfig
from framework.engine.executor import PredictsSteps
from framework.executor.calls import CallList
from framework.executor.pseudo import num_right_drafts
from framework.models.ranks import stages
from framework.models.read import read_model
from framework.outputs import RequestOutput
from framework.sampling_params import SamplingParams
from framework.speculation.config import SpeculativeConfig
from framework.speculation.depth import AdaptiveDepth

from ..engines import finish
from .simulations import EAGER, LLAMA_8B, decode_step, make_executor, prompt_step, simulated_config

RATES = [0.7296, 0.5208, 0.3545]
DRAFT = {**LLAMA_8B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
COPY_BYTES_S = 4.3e12


def speculation(method: str = "ngram", rates: list[float] | None = RATES, **given: Any) -> SpeculativeConfig:
    """Of as many guesses as there are rates."""
    return SpeculativeConfig(method, len(rates or ()), synthetic_acceptance_rates=rates, **given)


def serve(spec: SpeculativeConfig, num_requests: int = 8, num_output: int = 400) -> tuple[list[RequestOutput], int]:
    """The outputs, and the number of steps."""
    engine = build_engine(simulated_config(LLAMA_8B, speculative_config=spec, step_overhead_s=1e-3))
    for i in range(num_requests):
        engine.add_request(str(i), [1] * 10, SamplingParams(max_tokens=num_output, ignore_eos=True, seed=i))
    finished = []
    while engine.has_unfinished():
        finished += [output for output in engine.step() if output.finished]
    return finished, engine.stats().num_steps


@pytest.mark.parametrize("rates", [RATES, [1.0, 1.0], [0.0], [0.9, 0.1, 0.1, 0.0]])
def test_every_guess_is_accepted_at_its_rate(rates: list[float]) -> None:
    seeds, positions = np.repeat(np.arange(40, dtype=np.uint64), 1000), np.tile(np.arange(1000, dtype=np.uint64), 40)
    right = num_right_drafts(seeds, positions, np.full(40_000, len(rates)), rates)
    found = [(right > i).mean() for i in range(len(rates))]
    assert found == pytest.approx(rates, abs=4 * 0.5 / 200)  # four standard errors
    assert right.mean() == pytest.approx(sum(rates), abs=0.03)
    fewer = num_right_drafts(seeds, positions, np.ones(40_000, dtype=np.int64), rates)
    assert (fewer == np.minimum(right, 1)).all(), "a row with fewer guesses accepts of the same ones"


def test_the_mean_acceptance_length_of_a_run_is_that_of_the_theory() -> None:
    outputs, num_steps = serve(speculation())
    lengths = [count for output in outputs for count in tokens_per_step(output)]
    assert len(lengths) > 1000
    assert np.mean(lengths) == pytest.approx(1 + sum(RATES), abs=4 * np.std(lengths) / len(lengths) ** 0.5)
    assert all(len(output.outputs[0].token_ids) == 400 for output in outputs)
    assert num_steps < 400 / 2


def test_adaptive_depth_begins_with_nobody_running() -> None:
    outputs, num_steps = serve(speculation(adaptive_depth=True))
    assert all(len(output.outputs[0].token_ids) == 400 for output in outputs)
    assert num_steps < 400, "drafts pay at this batch"


def tpot_s(rates: list[float], batch: int, **given: Any) -> float:
    """Of so many requests at a time with 256 tokens, on the virtual clock."""
    spec = speculation("eagle3", rates, **given)
    config = simulated_config(LLAMA_8B, speculative_config=spec, step_overhead_s=2e-4, launch_s=2e-6, graphs=EAGER)
    engine = build_engine(replace(config, cache=CacheConfig(16, num_blocks=65536), scheduler=SchedulerConfig(max_num_seqs=batch)))
    for i in range(batch):
        engine.add_request(str(i), [1] * 128, SamplingParams(max_tokens=256, ignore_eos=True, seed=i))
    finished = finish(engine).values()
    return float(np.mean([(m.last_token_s - m.first_token_s) / 255 for m in (output.metrics for output in finished) if m]))


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("rates", [[0.73, 0.52, 0.35], [0.1, 0.02, 0.0], [0.0]])
def test_adaptive_depth_is_never_slower_than_none_and_as_good_as_the_best(rates: list[float], batch: int) -> None:
    fixed = [tpot_s(rates, batch, num_speculative_tokens_per_batch_size=[[1, 1, k]]) for k in range(1 + len(rates))]
    adaptive = tpot_s(rates, batch, adaptive_depth=True)
    assert adaptive < 1.03 * fixed[0] and adaptive < 1.05 * min(fixed)
    assert (min(fixed) < 0.7 * fixed[0]) == (rates[0] > 0.5), "there was something to choose"


@pytest.mark.parametrize("in_flight_steps", [1, 2])
@pytest.mark.parametrize("batch", [2, 24, 64])
@pytest.mark.parametrize("given", [{}, {"graphs": EAGER, "launch_s": 5e-6}, {"pp": 2}])
def test_the_time_of_a_step_is_predicted(given: dict[str, Any], batch: int, in_flight_steps: int) -> None:
    """Without a schedule to tell the executor: of requests that all have as many tokens."""
    spec = speculation("eagle3", [1.0, 1.0])
    scheduler = SchedulerConfig(max_num_seqs=batch, in_flight_steps=in_flight_steps)
    engine = build_engine(simulated_config(LLAMA_8B, speculative_config=spec, step_overhead_s=2e-4, scheduler=scheduler, **given))
    for i in range(batch):
        engine.add_request(str(i), [1] * 128, SamplingParams(max_tokens=90, ignore_eos=True))
    ends_s = []
    for _ in range(24):
        engine.step()
        ends_s.append(engine.clock.now())
    assert isinstance(engine.executor, PredictsSteps)
    assert engine.executor.step_time(batch, 2) == pytest.approx((ends_s[-1] - ends_s[-9]) / 8, rel=0.03)


def test_every_replica_has_a_depth_of_its_own() -> None:
    engines = build_replicas(simulated_config(LLAMA_8B, speculative_config=speculation(adaptive_depth=True), dp=2))
    depths = [engine.scheduler.speculation.depth for engine in engines if engine.scheduler.speculation]
    assert [type(depth) for depth in depths] == [AdaptiveDepth] * 2 and depths[0] is not depths[1]


def test_a_step_counts_the_tokens_that_it_brought_and_not_the_guesses() -> None:
    engine = build_engine(simulated_config(LLAMA_8B, speculative_config=speculation(), step_overhead_s=1e-3))
    engine.add_request("0", [1] * 10, SamplingParams(max_tokens=50, ignore_eos=True))
    while engine.has_unfinished():
        engine.step()
    assert engine.metrics().histograms["iteration_tokens_total"].total == 10 + 50


def tokens_per_step(output: RequestOutput) -> list[int]:
    """But for the first step, which has no guesses, and the last ones, which have fewer because the end is near."""
    assert output.metrics is not None
    _, counts = np.unique(output.metrics.token_times_s, return_counts=True)
    return counts[1:-4].tolist()


def test_a_length_stands_for_rates() -> None:
    config = SpeculativeConfig("ngram", 4, synthetic_acceptance_length=3.25)
    assert config.acceptance_rates() == [1.0, 1.0, 0.25, 0.0]
    outputs, _ = serve(config)
    lengths = np.array([count for output in outputs for count in tokens_per_step(output)])
    assert set(lengths) == {3, 4} and lengths.mean() == pytest.approx(3.25, abs=0.05)


def test_the_same_run_brings_the_same_tokens_whatever_runs_beside() -> None:
    (alone,), _ = serve(speculation(), 1)
    among = next(output for output in serve(speculation(), 8)[0] if output.request_id == "0")
    assert alone.outputs[0].token_ids == among.outputs[0].token_ids
    assert tokens_per_step(alone) == tokens_per_step(among)


def test_checking_computes_all_guesses_at_once() -> None:
    """As many rows of linear layers and logits as tokens, but the cache is read once per request."""
    plain, checking = make_executor(LLAMA_8B), make_executor(LLAMA_8B, speculative_config=speculation())
    plain.submit(decode_step(0, list(range(16)), 1000))
    checking.submit(decode_step(0, list(range(4)), 1000, num_drafts=3))
    one, all_at_once = plain.op_times(), checking.op_times()
    assert all_at_once["linear"].seconds == pytest.approx(one["linear"].seconds)
    assert all_at_once["sample"].seconds == pytest.approx(one["sample"].seconds), "a token is drawn in the place of each guess"
    assert all_at_once["paged_attention_decode"].seconds == pytest.approx(one["paged_attention_decode"].seconds / 4, rel=0.02)
    assert "verify_draft" not in all_at_once


@pytest.mark.parametrize(
    ("rule", "ops"), [("match", {"sample"}), ("synthetic", {"sample"}), ("standard", {"filter_logits", "verify_draft"})]
)
def test_only_rejection_sampling_pays_for_its_op(rule: str, ops: set[str]) -> None:
    config = simulated_config(LLAMA_8B)
    model = read_model(config.model)
    assert model.architecture is not None
    (stage,) = stages(model.architecture, 1)
    calls = CallList(model, model.architecture, config, fused=True).stage(stage, rule)
    assert {call.op for call in calls if call.rows == "samples"} == ops


def test_drafting_takes_a_pass_of_the_draft_model_per_guess() -> None:
    """At small batches the time of reading its weights."""
    ngram = make_executor(LLAMA_8B, speculative_config=speculation())
    spec = speculation("draft_model", model="draft", architecture=DRAFT)
    drafting = make_executor(LLAMA_8B, speculative_config=spec)
    for executor in (ngram, drafting):
        executor.submit(decode_step(0, [0], 10, num_drafts=3)).result()
    layer = 2048 * (32 + 2 * 8) * 64 + 32 * 64 * 2048 + 3 * 2048 * 8192
    weights = 16 * layer + 2048 * 128256
    extra_s = drafting.clock.now() - ngram.clock.now()
    assert extra_s == pytest.approx(3 * 2 * weights / COPY_BYTES_S, rel=0.01)


def test_a_profile_holds_what_drafting_took() -> None:
    spec = speculation("draft_model", model="draft", architecture=DRAFT)
    executor = make_executor(LLAMA_8B, speculative_config=spec, profile=True)
    for step in (prompt_step(0, 0, 100), decode_step(1, [0], num_drafts=3)):
        executor.submit(step).result()
    assert executor.call_times is not None
    taken = {op: time.seconds for op, time in executor.op_times().items()}
    found = dict.fromkeys(taken, 0.0)
    for call, _, seconds, _ in executor.call_times:
        found[call.op] += seconds
    assert found == pytest.approx(taken)


def test_a_draft_model_has_the_models_vocabulary() -> None:
    spec = speculation("draft_model", model="draft", architecture={**DRAFT, "vocab_size": 1000})
    with pytest.raises(ValueError, match=r"speculative_config.model='draft' .* vocabulary has 1000 tokens, the model's 128256"):
        make_executor(LLAMA_8B, speculative_config=spec)


@pytest.mark.parametrize("wrong", [{"hidden_size": -5}, {"hidden_size": "big"}, {"num_hidden_layers": 0}, {"head_dim": 0.5}])
def test_sizes_of_a_draft_model_are_positive_numbers(wrong: dict[str, Any]) -> None:
    spec = speculation("draft_model", model="draft", architecture={**DRAFT, **wrong})
    ((name, size),) = wrong.items()
    with pytest.raises(ValueError, match=f"has {name}={size!r}, expected a positive whole number"):
        make_executor(LLAMA_8B, speculative_config=spec)


def test_a_head_that_is_to_guess_nothing_still_reads_what_the_model_reads() -> None:
    ngram, head = (make_executor(LLAMA_8B, speculative_config=speculation(method)) for method in ("ngram", "eagle3"))
    for executor in (ngram, head):
        executor.submit(decode_step(0, [0], 10)).result()
    layer = 4096 * (32 + 2 * 8) * 128 + 4096 * 4096 + 3 * 4096 * 14336
    assert head.clock.now() - ngram.clock.now() == pytest.approx(2 * layer / COPY_BYTES_S, rel=0.01)


def test_a_head_is_a_layer_of_the_model_once_per_guess() -> None:
    ngram, head = (make_executor(LLAMA_8B, speculative_config=speculation(method)) for method in ("ngram", "eagle3"))
    for executor in (ngram, head):
        executor.submit(decode_step(0, [0], 10, num_drafts=3)).result()
    layer = 4096 * (32 + 2 * 8) * 128 + 4096 * 4096 + 3 * 4096 * 14336
    assert head.clock.now() - ngram.clock.now() == pytest.approx(3 * 2 * (layer + 4096 * 128256) / COPY_BYTES_S, rel=0.01)


def test_a_draft_model_reads_prompts_too_and_takes_memory() -> None:
    spec = speculation("draft_model", model="draft", architecture=DRAFT)
    cache = CacheConfig(16, memory_fraction=0.3)
    plain, drafting = make_executor(LLAMA_8B, cache=cache), make_executor(LLAMA_8B, speculative_config=spec, cache=cache)
    for executor in (plain, drafting):
        executor.submit(prompt_step(0, 0, 2000))
    assert drafting.op_times()["paged_attention_prefill"].calls == 32 + 16
    assert drafting.weight_bytes > plain.weight_bytes
    kv = 2 * 8 * 128 * 2 * 32, 2 * 8 * 64 * 2 * 16
    left = (drafting.weight_bytes - plain.weight_bytes) / (16 * kv[0])
    assert drafting.num_blocks == pytest.approx((plain.num_blocks - left) * kv[0] / sum(kv), abs=2)
