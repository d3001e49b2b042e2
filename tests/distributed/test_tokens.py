"""Engines over several ranks give what one process gives: tokens, log-probabilities, ends; with the reference kernels, exactly.

Ranks are threads of this process; processes stand in a few tests.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from framework import LLM, EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.lora_request import LoraConfig
from framework.outputs import RequestOutput
from framework.speculation.config import SpeculativeConfig
from triton_kernels.resolve import NoKernelError

from ..framework.engines import finish, run
from ..framework.models.checkpoints import make
from ..models.examples import EXAMPLES
from ..models.examples.states import EXAMPLES as STATES
from ..test_exactness import Job, some_jobs
from ..tiny_adapters import LINEARS, write_tiny_adapter

SIZES = {"tp2": (2, 1), "tp4": (4, 1), "pp2": (1, 2), "pp3": (1, 3), "tp2 pp2": (2, 2)}
TIGHT = CacheConfig(block_size=4, num_blocks=26, prefix_caching=True, check_invariants=True)
CHUNKS = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=13)


def config_of(
    size: tuple[int, int] | None,
    model: ModelConfig | None = None,
    cache: CacheConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    *,
    backend: str = "threads",
    ep: int = 1,
    spec: SpeculativeConfig | None = None,
) -> EngineConfig:
    """size: tp and pp; None: one process."""
    config = EngineConfig(
        model or ModelConfig("tiny", dtype="float32", max_model_len=160, max_logprobs=-1),
        cache or CacheConfig(block_size=4, num_blocks=300),
        scheduler or SchedulerConfig(max_num_seqs=8),
        speculative_config=spec or SpeculativeConfig(),
        kernels={"default": "reference"},
        num_threads=1,
        device="cpu",
    )
    if size is not None:
        config.executor = ExecutorConfig("distributed")
        config.parallel = ParallelConfig(*size, ep=ep, backend=backend)
    return config


def build(*given: Any, **named: Any) -> Engine:
    """Of ``config_of``."""
    return build_engine(config_of(*given, **named))


def told(outputs: list[RequestOutput]) -> list[Any]:
    return [
        (output.error, output.prompt_logprobs, [(c.token_ids, c.text, c.finish_reason, c.logprobs) for c in output.outputs])
        for output in outputs
    ]


def served(size: tuple[int, int] | None, jobs: Sequence[Job], **given: Any) -> list[Any]:
    engine = build(size, **given)
    try:
        return told(run(engine, list(jobs)))
    finally:
        engine.shutdown()


def varied() -> list[Job]:
    """Greedy and sampled, penalties, log-probabilities, several completions."""
    jobs = some_jobs(8, seed=3, max_tokens=16)
    for i, (_, params) in enumerate(jobs):
        params.logprobs, params.prompt_logprobs = (3 if i % 2 else None), (2 if i % 4 == 1 else None)
        params.repetition_penalty, params.n = (1.2 if i % 3 == 0 else 1.0), (2 if i == 4 else 1)
    return jobs


JOBS = varied()


@functools.cache
def expected(tight: bool = False) -> list[Any]:
    return served(None, JOBS, **({"cache": TIGHT, "scheduler": CHUNKS} if tight else {}))


@pytest.mark.parametrize("name", SIZES)
def test_ranks_give_what_one_process_gives(name: str) -> None:
    assert served(SIZES[name], JOBS) == expected()


@pytest.mark.parametrize("kernel", ["none", "reference", "torch"])
def test_the_norm_after_attention_may_sum_over_the_ranks(kernel: str) -> None:
    """With the bits of the sum and the norm one after the other; torch's adds up in float32."""
    config = config_of((2, 1))
    config.kernels |= {"all_reduce_add_rms_norm": kernel}
    engine = build_engine(config)
    try:
        found, report = told(run(engine, JOBS)), engine.plan_report()
    finally:
        engine.shutdown()
    assert kernel == "torch" or found == expected()
    called = ("rms_norm", "all_reduce", "all_reduce_add_rms_norm")
    norms, sums, both = (report.get(op, {"calls": 0})["calls"] for op in called)
    assert norms == sums and both * 7 == (0 if kernel == "none" else norms * 6), "six layers, and the embedding or the last norm"


@pytest.mark.parametrize("name", ["tp2", "pp2", "pp3"])
def test_so_they_do_with_chunks_preemptions_and_cached_prefixes(name: str) -> None:
    engine = build(SIZES[name], cache=TIGHT, scheduler=CHUNKS)
    assert [output[2] for output in told(run(engine, list(JOBS)))] == [output[2] for output in expected(True)]
    stats = engine.stats()
    assert stats.num_preemptions > 0 and stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0
    assert engine.manager.pool.num_free == engine.manager.pool.num_blocks - 1
    engine.shutdown()


def test_so_they_do_with_adapters_in_half_precision(tmp_path: Path) -> None:
    """What an adapter adds is rounded where one process rounds it: behind the sum of the layer."""
    targets = [LINEARS, ("embed_tokens", "o_proj"), ("down_proj", "lm_head")]
    adapters = [None, *(write_tiny_adapter(tmp_path / str(i), i, 4 * i, targets[i - 1]) for i in (1, 2, 3))]
    found = []
    for size in (None, (2, 1), (2, 2)):
        config = config_of(size, ModelConfig("tiny", dtype="bfloat16", max_model_len=160), scheduler=CHUNKS)
        config.lora = LoraConfig(True, 2, 16, 3)
        engine = build_engine(config)
        for index, (prompt, params) in enumerate(JOBS[:6]):
            engine.add_request(str(index), list(prompt), params, lora_request=adapters[index % 4])
        outputs = finish(engine)
        found.append(told([outputs[name] for name in sorted(outputs)]))
        engine.shutdown()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["gemma2", "qwen3-moe", "gpt2", "gpt-oss", "deepseek-v3", "jamba", "mamba2", "qwen3-next"])
def test_stages_of_models_with_windows_experts_latents_and_states(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    make(EXAMPLES[name], folder)
    model = ModelConfig(str(folder), tokenizer="tiny", dtype="float32", max_model_len=90)
    jobs = [([token % 200 + 3 for token in prompt], params) for prompt, params in some_jobs(5, seed=1, max_tokens=12)]
    for _, params in jobs:
        params.detokenize = False
    given = {"model": model, "cache": CacheConfig(block_size=4, num_blocks=120), "scheduler": CHUNKS}
    whole = served(None, jobs, **given)  # type: ignore[arg-type]
    if name in STATES:
        given["cache"] = CacheConfig(block_size=4, num_blocks=120, state_snapshots=3)
    has_experts = "moe" in name or name in ("gpt-oss", "deepseek-v3", "jamba", "qwen3-next")
    for size, ep in (((1, 3), 1), ((2, 2), 2 if has_experts else 1)):
        assert served(size, jobs, ep=ep, **given) == whole  # type: ignore[arg-type]


def test_a_stage_is_busy_while_another_is() -> None:
    """Steps in flight are as many as stages, and no request is in two of them."""
    engine = build((1, 2))
    seen = []
    whole = engine.executor.submit

    def submit(step: Any) -> Any:
        seen.append(
            (len(engine.in_flight), set(step.seats), {s for scheduled, _ in engine.in_flight for s in scheduled.step_input.seats})
        )
        return whole(step)

    engine.executor.submit = submit  # type: ignore[method-assign]
    run(engine, list(JOBS))
    assert any(in_flight for in_flight, _, _ in seen) and not any(own & others for _, own, others in seen if others)
    engine.shutdown()


def test_drafts_of_the_host_and_of_heads_are_checked_on_ranks() -> None:
    for spec in (
        SpeculativeConfig("suffix", num_speculative_tokens=3),
        SpeculativeConfig("mtp", model="tiny-mtp", num_speculative_tokens=2),
    ):
        assert [output[2] for output in served((2, 1), JOBS, spec=spec)] == [output[2] for output in expected()]


@pytest.mark.parametrize("name", ["tp2", "tp2 pp2"])
def test_processes_give_what_one_process_gives(name: str) -> None:
    assert served(SIZES[name], JOBS, backend="processes") == expected()


def test_the_surface_takes_the_names_of_vllm() -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    given: dict[str, Any] = {"device": "cpu", "dtype": "float32", "kernels": {"default": "reference"}}
    plain = LLM("tiny", **given).generate(["def f("], params, use_tqdm=False)
    ranks = LLM("tiny", tensor_parallel_size=2, distributed_executor_backend="mp", **given)
    assert ranks.generate(["def f("], params, use_tqdm=False)[0].outputs[0].token_ids == plain[0].outputs[0].token_ids
    ranks.engine.shutdown()


@pytest.mark.parametrize(
    ("size", "ep", "words"),
    [
        ((3, 1), 1, "parallel.tp=3 cannot work: it must divide the model's 2 KV heads, or be a multiple; 1, 2, 4 work"),
        ((1, 9), 1, "parallel.pp=9 cannot work: the model has"),
        ((2, 1), 4, "parallel.ep=4 cannot work"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_weights_are_read(size: tuple[int, int], ep: int, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(size, ep=ep)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("model", "spec", "size", "words"),
    [
        ({"runner": "pooling"}, {}, (2, 1), r"parallel.tp=2 cannot work: 'tiny' pools; leave it at 1"),
        (
            {"backend": "transformers"},
            {},
            (1, 2),
            r"parallel.pp=2 cannot work: model 'tiny' runs through the transformers library .model.backend=transformers.",
        ),
        (
            {},
            {"method": "ngram", "num_speculative_tokens": 2},
            (1, 2),
            "speculative_config.method=ngram cannot work with parallel.pp=2",
        ),
    ],
)
def test_what_ranks_cannot_do_is_refused_before_they_start(
    model: dict[str, Any], spec: dict[str, Any], size: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.distributed.executor.DistributedExecutor.__init__", None)
    with pytest.raises(ValueError, match=words):
        build(size, ModelConfig("tiny", dtype="float32", **model), spec=SpeculativeConfig(**spec))


@pytest.mark.parametrize(
    ("size", "kernels", "words"),
    [
        ((2, 1), {"all_reduce": "nccl"}, "nccl: runs on cuda, not on cpu"),
        ((4, 1), {"all_reduce": "gloo"}, "gloo: serves groups of gloo, this one is of threads"),
        ((2, 1), {"all_gather": "nccl"}, "nccl: runs on cuda, not on cpu"),
        ((2, 2), {"linear": "onednn"}, "onednn: does not take partial"),
        ((1, 2), {"all_reduce": "threads"}, "kernels.all_reduce=threads would never run: this engine never calls it. Set"),
        ((2, 1), {"all_to_all": "threads"}, "this engine never calls it; of its kind it calls all_gather, all_reduce. Set"),
        ((2, 1), {"all_reduce_add_rms_norm": "triton"}, "no kernel for all_reduce_add_rms_norm=triton on cpu"),
        ((1, 2), {"all_reduce_add_rms_norm": "torch"}, "kernels.all_reduce_add_rms_norm=torch would never run: this engine never"),
        ((2, 1), {"linear": "tree@width:4096"}, "tree: needs 4096 columns on each rank, here are"),
    ],
)
def test_kernels_that_ranks_cannot_run_are_refused_before_weights_are_read(
    size: tuple[int, int], kernels: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.worker.local_executor.load_model", lambda *_: pytest.fail("weights were read"))
    config = config_of(size)
    config.kernels |= kernels
    with pytest.raises(NoKernelError) as caught:
        build_engine(config)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["tp2", "pp2"])
def test_the_weights_of_all_ranks_are_about_those_of_the_model(name: str) -> None:
    """Each rank asks its device for room for its own."""
    whole, ranks = build(None), build(SIZES[name])
    weights = ranks.executor.nominal_weight_bytes
    assert weights == pytest.approx(ranks.executor.weight_bytes, rel=0.1)
    assert 0.9 < weights / whole.executor.nominal_weight_bytes < 1.4  # both stages have the tied embedding
    ranks.shutdown()
