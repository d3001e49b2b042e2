"""A request's tokens do not depend on what happens around it: batch, chunks, blocks, preemption, prefix cache, steps in flight.

Exactly so with the reference kernels; with any others a first difference is allowed only at near-ties.
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, QuantConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.outputs import RequestOutput
from framework.speculation.config import SpeculativeConfig
from framework.speculation.depth import Checked

from . import speculating
from .framework.engines import run, tokens

Job = tuple[tuple[int, ...], SamplingParams]
REFERENCE = {"default": "reference"}
SHARED_PREFIX = tuple(random.Random(0).choices(range(300, 2000), k=40))


def engine(
    kernels: dict[str, str] = REFERENCE,
    cache: CacheConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    quant: str = "none",
) -> Engine:
    cache = cache or CacheConfig(num_blocks=200, prefix_caching=False)
    scheduler = scheduler or SchedulerConfig(max_num_seqs=16)
    cache.check_invariants = True
    model = ModelConfig("tiny", dtype="float32", max_model_len=160, max_logprobs=-1)
    weights = QuantConfig(quant, group_size=64)
    return build_engine(EngineConfig(model, cache, scheduler, quant=weights, kernels=dict(kernels), num_threads=1))


@functools.cache
def baseline_engine(cache_dtype: str = "auto") -> Engine:
    cache = CacheConfig(num_blocks=200, prefix_caching=False, dtype=cache_dtype)
    return engine(cache=cache, scheduler=SchedulerConfig(max_num_seqs=4))


def alone(jobs: list[Job], cache_dtype: str = "auto") -> list[list[list[int]]]:
    """Each request by itself: whole prompt in one step, no prefix cache."""
    return tokens(run(baseline_engine(cache_dtype), jobs, together=False))


def some_jobs(count: int, seed: int = 0, max_tokens: int = 10) -> list[Job]:
    rng = random.Random(seed)
    jobs = []
    for index in range(count):
        prompt = SHARED_PREFIX[: rng.randrange(1, 40)] + tuple(rng.choices(range(300, 2000), k=rng.randrange(1, 20)))
        temperature = rng.choice([0.0, 0.7, 1.2])
        params = SamplingParams(
            temperature=temperature,
            seed=index,
            max_tokens=rng.randrange(1, max_tokens + 1),
            top_k=rng.choice([0, 20]),
            top_p=rng.choice([1.0, 0.9]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            ignore_eos=True,
        )
        jobs.append((prompt, params))
    return jobs


JOBS = some_jobs(8)


def test_a_batch_changes_nothing() -> None:
    assert tokens(run(engine(), JOBS)) == alone(JOBS)


def test_chunked_prefill_changes_nothing() -> None:
    running = engine(scheduler=SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=11))
    assert tokens(run(running, JOBS)) == alone(JOBS)
    assert running.stats().num_chunked_prefills > 0


@pytest.mark.parametrize("block_size", [1, 4, 32])
def test_the_block_size_changes_nothing(block_size: int) -> None:
    running = engine(cache=CacheConfig(block_size=block_size, num_blocks=600, prefix_caching=True))
    assert tokens(run(running, JOBS)) == alone(JOBS)


@pytest.mark.parametrize("in_flight_steps", [1, 3])
def test_preemption_changes_nothing(in_flight_steps: int) -> None:
    cache = CacheConfig(block_size=4, num_blocks=24, prefix_caching=False)
    running = engine(cache=cache, scheduler=SchedulerConfig(max_num_seqs=8, in_flight_steps=in_flight_steps))
    jobs = some_jobs(8, seed=3, max_tokens=20)
    assert tokens(run(running, jobs)) == alone(jobs)
    assert running.stats().num_preemptions > 0


def test_prefix_caching_changes_nothing() -> None:
    running = engine(cache=CacheConfig(block_size=4, num_blocks=300, prefix_caching=True))
    first = tokens(run(running, JOBS))
    assert first == tokens(run(running, JOBS)) == alone(JOBS)
    assert running.stats().prefix_hit_tokens > 0


def test_steps_in_flight_change_nothing() -> None:
    running = engine(scheduler=SchedulerConfig(max_num_seqs=5, in_flight_steps=2))
    assert tokens(run(running, JOBS)) == alone(JOBS)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_a_quantized_cache_holds_the_same_after_preemptions_chunks_and_prefix_hits(dtype: str) -> None:
    cache = CacheConfig(block_size=4, num_blocks=30, prefix_caching=True, dtype=dtype)
    running = engine(cache=cache, scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=13, in_flight_steps=2))
    jobs = some_jobs(8, seed=3, max_tokens=20)
    assert tokens(run(running, jobs)) == alone(jobs, dtype)
    stats = running.stats()
    assert stats.num_preemptions > 0 and stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0


QUANTIZED_OPS = ("gemm_w4a16", "gemm_w8a16", "gemm_int8", "quantize_activation")


@pytest.mark.parametrize("gemms", ["reference", "native"])
@pytest.mark.parametrize("quant", ["rtn-int4", "int8-weight", "int8", "fp8", "fp8-block"])
def test_quantized_weights_give_the_same_in_any_batch(quant: str, gemms: str) -> None:
    """By the reference kernels, and by the C kernels of a CPU, whose rows do not depend on each other either."""
    kernels = REFERENCE if gemms == "reference" else REFERENCE | dict.fromkeys(QUANTIZED_OPS, "auto")
    jobs = some_jobs(6, seed=3, max_tokens=20)
    by_itself = engine(kernels, CacheConfig(num_blocks=200, prefix_caching=False), SchedulerConfig(max_num_seqs=4), quant)
    expected = tokens(run(by_itself, jobs, together=False))
    cache = CacheConfig(block_size=4, num_blocks=26, prefix_caching=True)
    running = engine(kernels, cache, SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=13, in_flight_steps=2), quant)
    assert tokens(run(running, jobs)) == expected
    stats = running.stats()
    assert stats.num_preemptions > 0 and stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0
    assert running.manager.pool.num_free == running.manager.pool.num_blocks - 1


@pytest.mark.parametrize("dtype", ["auto", "int8", "float8_e5m2"])
def test_parallel_samples_are_single_requests_with_the_following_seeds(dtype: str) -> None:
    prompt = SHARED_PREFIX[:23]
    running = engine(cache=CacheConfig(block_size=4, num_blocks=300, dtype=dtype))
    params = SamplingParams(n=3, seed=7, max_tokens=8, temperature=1.0)
    forked = tokens(run(running, [(prompt, params)]))[0]
    single = [(prompt, replace(params, n=1, seed=7 + i)) for i in range(3)]
    assert forked == [samples[0] for samples in alone(single, dtype)]
    assert running.stats().num_forks == 2
    assert len({tuple(sample) for sample in forked}) == 3


def test_aborts_lose_nothing_of_the_others() -> None:
    running = engine(cache=CacheConfig(block_size=4, num_blocks=60))
    rng = random.Random(1)
    for index, (prompt, params) in enumerate(JOBS):
        running.add_request(str(index), list(prompt), params)
    doomed = {"1", "4", "6"}
    done: dict[str, RequestOutput] = {}
    while running.has_unfinished():
        if doomed and rng.random() < 0.4:
            running.abort([doomed.pop()])
        done.update({output.request_id: output for output in running.step() if output.finished})
    expected = alone(JOBS)
    survivors = set(map(str, range(len(JOBS)))) - {"1", "4", "6"}
    assert survivors <= set(done)
    for index in survivors:
        assert [c.token_ids for c in done[index].outputs] == expected[int(index)]
    assert running.manager.pool.num_free == running.manager.pool.num_blocks - 1


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    jobs=st.integers(0, 10_000).map(lambda seed: some_jobs(6, seed)),
    block_size=st.sampled_from([2, 5, 16]),
    spare_blocks=st.integers(0, 40),
    budget=st.sampled_from([3, 17, 64, 512]),
    num_seqs=st.integers(1, 8),
    in_flight_steps=st.integers(1, 3),
    prefix_caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority"]),
)
def test_no_mixture_of_them_changes_anything(
    jobs: list[Job],
    block_size: int,
    spare_blocks: int,
    budget: int,
    num_seqs: int,
    in_flight_steps: int,
    prefix_caching: bool,
    policy: str,
) -> None:
    longest = max(len(prompt) + (params.max_tokens or 0) for prompt, params in jobs)
    cache = CacheConfig(
        block_size=block_size, num_blocks=-(-longest // block_size) + 1 + spare_blocks, prefix_caching=prefix_caching
    )
    scheduler = SchedulerConfig(policy, num_seqs, budget, in_flight_steps=in_flight_steps)
    running = engine(cache=cache, scheduler=scheduler)
    assert tokens(run(running, jobs)) == alone(jobs)
    assert running.manager.pool.num_free == running.manager.pool.num_blocks - 1


def test_fast_kernels_differ_from_the_reference_at_near_ties_only() -> None:
    """A first difference needs a float64 gap of the two tokens below 4 x the measured error of a log-probability."""
    jobs = [
        (prompt, replace(params, temperature=0, max_tokens=24, frequency_penalty=0)) for prompt, params in some_jobs(50, seed=9)
    ]
    fast = engine(
        kernels={},
        cache=CacheConfig(block_size=4, num_blocks=400, prefix_caching=True),
        scheduler=SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=64),
    )
    got = [output.outputs[0].token_ids for output in run(fast, jobs)]
    assert fast.stats().num_chunked_prefills > 0
    expected = [sample[0] for sample in alone(jobs)]
    differing = [i for i in range(len(jobs)) if got[i] != expected[i]]
    assert len(differing) <= 0.02 * len(jobs), f"{len(differing)} of {len(jobs)} requests differ"
    for index in differing:
        common = next(i for i, (a, b) in enumerate(zip(got[index], expected[index])) if a != b)
        prefix = jobs[index][0] + tuple(expected[index][:common])
        exact = _logprobs(baseline_engine(), prefix)
        error = max(abs(exact[t] - p) for t, p in _logprobs(fast, prefix).items())
        assert abs(exact[got[index][common]] - exact[expected[index][common]]) < 4 * error


@functools.cache
def without_speculation(kernels: str = "reference") -> Engine:
    return speculating.make_engine(kernels=kernels)


def test_speculation_changes_nothing(mix_seed: int) -> None:
    """Any method, depth and parameters, with preemptions, chunks, shared prefixes and steps in flight; see ``--mixes``."""
    speculating.check_mix(mix_seed, without_speculation())


def test_speculation_was_put_to_the_test() -> None:
    """What the mixes are to meet happens in them."""
    happened = [speculating.check_mix(seed, without_speculation()) for seed in (6, 25)]
    totals = {key: sum(one[key] for one in happened) for key in happened[0] if key != "method"}
    assert all(totals.values()), totals


class AnyDepth:
    """A policy that asks for more and fewer drafts from step to step, and checks what it is told."""

    def __init__(self, most: int) -> None:
        self._most, self._random = most, random.Random(0)

    def of(self, num_running: int) -> int:
        return self._random.choice([0, self._most, self._random.randint(0, self._most)])

    def observe(self, step: Checked) -> None:
        again, again_right = step.after_right
        assert len(step.checked) == len(step.accepted) <= step.k <= self._most
        numbers = [step.num_rows, *(n for both in zip(step.checked, step.accepted) for n in both)]
        assert numbers == sorted(numbers, reverse=True), "a draft is checked where those before it were right"
        assert again_right <= again <= step.num_rows and again - again_right <= sum(step.checked[:1]) - sum(step.accepted[:1])


@pytest.mark.parametrize("seed", [206, 208])
def test_speculation_changes_nothing_at_any_depth_of_each_step(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drafts that the host makes, and the device."""
    monkeypatch.setattr("framework.build.depth_of", lambda config, step_time: AnyDepth(config.num_speculative_tokens))
    assert speculating.check_mix(seed, without_speculation())["drafts"] > 0


LATENT = {
    "model_type": "minicpm3",
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "dim_model_base": 16,
    "max_position_embeddings": 160,
}
GROUPS = {
    **LATENT,
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
DELTA = {
    "model_type": "qwen3_next",
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "full_attention_interval": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
}
JAMBA = {
    "model_type": "jamba",
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 4,
    "mamba_d_state": 8,
    "max_position_embeddings": 160,
}
GRANITE = {
    "model_type": "granitemoehybrid",
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "shared_intermediate_size": 48,
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 0,
    "attention_multiplier": 0.3,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "max_position_embeddings": 160,
}
OTHER_KINDS = {
    name: ModelConfig(name, dtype="float32", load_format="dummy", max_model_len=160, architecture=architecture)
    for name, architecture in (
        ("latent attention", LATENT),
        ("groups of experts", GROUPS),
        ("gated delta nets", DELTA),
        ("Mamba 1", JAMBA),
        ("Mamba 2", GRANITE),
    )
}
STATES = ("gated delta nets", "Mamba 1", "Mamba 2")


@functools.cache
def served_alone(kind: str) -> Engine:
    return speculating.make_engine(model=OTHER_KINDS[kind])


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_no_mixture_changes_what_models_of_other_kinds_say(kind: str, mix_seed: int) -> None:
    """Drafts, preemptions, chunks, shared prefixes, forks and steps in flight, as far as the kind has them; see ``--mixes``."""
    speculating.check_mix(mix_seed, served_alone(kind), OTHER_KINDS[kind], shares=kind not in STATES)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_models_of_other_kinds_were_put_to_the_test(kind: str) -> None:
    shares = kind not in STATES
    happened = [speculating.check_mix(seed, served_alone(kind), OTHER_KINDS[kind], shares) for seed in (1, 2, 5)]
    totals = {key: sum(one[key] for one in happened) for key in happened[0] if key != "method"}
    assert all(totals[key] for key in (totals if shares else ("preemptions", "chunks", "prefix hits"))), totals


@pytest.mark.parametrize("in_flight_steps", [1, 2])
def test_speculation_on_the_host_knows_all_tokens_and_is_heard(in_flight_steps: int) -> None:
    """Who is always right is never rejected: drafts follow the newest token, stand where it is looked for them, and end with the
    request."""
    jobs = [
        ([*SHARED_PREFIX[:20], i], SamplingParams(temperature=0.5 * i, seed=i, max_tokens=30, ignore_eos=True)) for i in range(3)
    ]
    expected = run(without_speculation(), jobs, together=False)
    speculating.Oracle.comes = speculating.comes(jobs, expected)
    method = {"method": "tests.speculating:Prophet", "num_speculative_tokens": 4}
    running = speculating.make_engine(method, scheduler=SchedulerConfig(in_flight_steps=in_flight_steps))
    speculating.check_equal(run(running, jobs), expected)
    drafts = running.stats().drafts
    assert drafts.accepted == drafts.drafts == (18, 18, 18, 15), "five tokens a step, and the last steps have three drafts"


def test_speculation_by_a_broken_proposer_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    jobs = [(list(SHARED_PREFIX[:9]), SamplingParams(temperature=0.5, seed=i, max_tokens=12, ignore_eos=True)) for i in range(2)]
    running = speculating.make_engine({"method": "tests.speculating:Broken", "num_speculative_tokens": 3})
    speculating.check_equal(run(running, jobs), run(without_speculation(), jobs, together=False))
    assert not sum(running.stats().drafts.drafts)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]  # others may have asked for more
    assert errors == ["Broken proposes nothing for a request"]


@pytest.mark.parametrize("in_flight_steps", [1, 2])
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_speculation_by_the_model_itself_is_always_right(kernels: str, in_flight_steps: int) -> None:
    """Drafts are drawn with the noise of the tokens that they guess, so a draft model equal to the model guesses all of them."""
    prompts = [[*SHARED_PREFIX[:20], index] for index in range(4)]
    params = [SamplingParams(temperature=0.6 * i, seed=i, max_tokens=33, ignore_eos=True, top_p=0.95) for i in range(4)]
    jobs = list(zip(prompts, params))
    method = {"method": "draft_model", "model": "tiny", "num_speculative_tokens": 3}
    running = speculating.make_engine(method, scheduler=SchedulerConfig(in_flight_steps=in_flight_steps), kernels=kernels)
    speculating.check_equal(run(running, jobs), run(without_speculation(kernels), jobs, together=False))
    found = running.stats().drafts
    assert found.accepted == found.drafts and sum(found.drafts) == 4 * 8 * 3


def _logprobs(running: Engine, prefix: tuple[int, ...]) -> dict[int, float]:
    output = run(running, [(prefix, SamplingParams(temperature=0, max_tokens=1, logprobs=-1))])[0]
    assert output.outputs[0].logprobs is not None
    return {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}


def test_speculation_by_a_draft_model_needs_no_room_that_windows_leave_none_of() -> None:
    architecture = {
        "model_type": "mistral",
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 8,
        "max_position_embeddings": 128,
    }
    speculative = {"method": "draft_model", "model": "draft", "architecture": architecture, "num_speculative_tokens": 3}
    rng, jobs = random.Random(0), []
    for i in range(3):
        params = SamplingParams(temperature=0.7, seed=i, max_tokens=20, ignore_eos=True)
        jobs.append((rng.choices(range(300, 2000), k=20), params))
    found = []
    for spec in ({}, speculative):
        cache = CacheConfig(1, num_blocks=12, prefix_caching=False, check_invariants=True)
        scheduler = SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=1, in_flight_steps=2)
        model = ModelConfig("windowed", dtype="float32", load_format="dummy", architecture=architecture)
        config = EngineConfig(model, cache, scheduler, num_threads=1, speculative_config=SpeculativeConfig.of(spec))
        config.kernels = {"default": "reference"}
        running = build_engine(config)
        for index, (prompt, params) in enumerate(jobs):
            running.add_request(str(index), prompt, params)
        outputs = {}
        for _ in range(1000):
            outputs.update({output.request_id: output for output in running.step() if output.finished})
        found.append([outputs[str(index)] for index in range(len(jobs))])
    speculating.check_equal(*found)
