"""Block diffusion: tokens are those of a loop that keeps nothing between passes, whatever happens around a request."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from framework import LLM, EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, LoraConfig, ModelConfig, ParallelConfig, QuantConfig, SchedulerConfig
from framework.engine.diffusion import Denoising, DiffusionConfig
from framework.engine.engine import Engine
from framework.engine.request import Request
from framework.engine.step import StepOutput
from framework.models.read import read_model
from framework.outputs import RequestOutput
from framework.sampling_params import BeamSearchParams, RequestOutputKind, StructuredOutputsParams
from framework.speculation.config import SpeculativeConfig
from framework.study.driver import run_workload
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.workload import WorkloadRequest
from framework.worker.teacher_forcing import TeacherForcing

from ..framework.engines import run, tokens
from .canvases import LLaDA2, Logits, Loop, of_library

VOCAB, MASK = 2048, 2047
REFERENCE = {"default": "reference"}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": None,
}
SDAR = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 4, "mask_token_id": MASK}
LLADA2 = {
    **SIZES,
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "mask_token_id": MASK,
    "use_bias": False,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "moe_intermediate_size": 48,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
KINDS = ("sdar", "sdar_moe", "llada2")
CANVAS = {"sdar": 4, "sdar_moe": 4, "llada2": 32}


@dataclass
class Example:
    """A tiny random checkpoint, and what computes it without the framework."""

    folder: Path
    canvas: int
    logits: Logits

    def loop(self, **settings: Any) -> Loop:
        return Loop(self.logits, self.canvas, MASK, **settings)


@cache
def example(kind: str, folder: Path) -> Example:
    own = folder / kind
    torch.manual_seed(3)
    if kind == "llada2":
        weights = llada2_weights()
        own.mkdir()
        save_file(weights, own / "model.safetensors")
        (own / "config.json").write_text(json.dumps(LLADA2))
        return Example(own, 32, LLaDA2(LLADA2, weights))
    if kind == "sdar":
        model: Any = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, attn_implementation="eager"))
    else:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **experts, attn_implementation="eager"))
    for name, weight in model.named_parameters():
        weight.data.copy_(random_weight(name, weight.shape))
    model.eval().save_pretrained(own)
    config = json.loads((own / "config.json").read_text())
    config["num_experts"] = config.pop("num_local_experts", None)
    (own / "config.json").write_text(json.dumps({**config, **SDAR, "model_type": kind}))
    return Example(own, 4, of_library(model))


def random_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Logits are far apart, so that some tokens are sure and some are not; attention is far from uniform."""
    noise = torch.randn(shape)
    if len(shape) == 1:
        return 0.3 * noise + (1.0 if "norm" in name else 0.0)
    if "embed" in name:
        return noise
    gain = 1.1 if "lm_head" in name else 2.5 if any(part in name for part in ("q_proj", "k_proj", "query_key")) else 1.5
    return noise * gain * (8 if "lm_head" in name else 1) * shape[-1] ** -0.5


def llada2_weights() -> dict[str, torch.Tensor]:
    hidden, vocab = SIZES["hidden_size"], VOCAB
    shapes: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}attention.{norm}.weight": (16,) for norm in ("query_layernorm", "key_layernorm")}
        shapes |= {f"{at}attention.query_key_value.weight": (8 * 16, hidden), f"{at}attention.dense.weight": (hidden, 4 * 16)}
        inner = {f"{at}mlp.": 96}
        if layer:
            shapes |= {f"{at}mlp.gate.weight": (8, hidden), f"{at}mlp.gate.expert_bias": (8,)}
            inner = {f"{at}mlp.experts.{expert}.": 48 for expert in range(8)} | {f"{at}mlp.shared_experts.": 48}
        for prefix, size in inner.items():
            shapes |= {f"{prefix}{name}_proj.weight": (size, hidden) for name in ("gate", "up")}
            shapes[f"{prefix}down_proj.weight"] = (hidden, size)
    return {name: random_weight(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("block-diffusion")


def config(found: Example, kernels: dict[str, str] | None = None, **settings: Any) -> EngineConfig:
    cache_config = settings.pop("cache", CacheConfig(num_blocks=400))
    cache_config.check_invariants = True
    scheduler = settings.pop("scheduler", SchedulerConfig(max_num_seqs=8))
    architecture = settings.pop("architecture", {})
    skip = settings.pop("tokenizer", None)
    model = ModelConfig(
        str(found.folder), skip, dtype="float32", skip_tokenizer=skip is None, max_logprobs=-1, architecture=architecture
    )
    model.max_model_len = settings.pop("max_model_len", None)
    return EngineConfig(model, cache_config, scheduler, kernels=kernels or {}, num_threads=1, **settings)


def build(found: Example, kernels: dict[str, str] | None = None, **settings: Any) -> Engine:
    return build_engine(config(found, kernels, **settings))


Job = tuple[list[int], SamplingParams]


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(300, 2000), k=count)


def greedy(max_tokens: int | None, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **more)


SETTINGS = [
    DiffusionConfig(),
    DiffusionConfig(threshold=0.3),
    DiffusionConfig(threshold=1.0),
    DiffusionConfig(threshold=0.0),
    DiffusionConfig(threshold=1.0, max_passes=2),
]


@pytest.mark.parametrize("diffusion", SETTINGS, ids=lambda d: f"{d.threshold}-{d.max_passes}")
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_a_loop_without_a_cache(kind: str, diffusion: DiffusionConfig, folder: Path) -> None:
    """Side by side, with prompts that end anywhere in a canvas, and answers that do."""
    found = example(kind, folder)
    lengths = ((1, 22), (3, 9), (4, 13), (6, 14), (9, 5), (32, 23), (43, 2)) if kind == "sdar" else ((5, 40), (32, 9), (70, 7))
    jobs = [(some_tokens(count, count), greedy(most)) for count, most in lengths]
    loop = found.loop(threshold=diffusion.threshold, max_passes=diffusion.max_passes)
    answers = [loop.generate(prompt, most) for (prompt, _), (_, most) in zip(jobs, lengths)]
    engine = build(found, diffusion=diffusion)
    assert tokens(run(engine, jobs)) == [[answer] for answer, _, _ in answers]
    flat = [token for answer, _, _ in answers for token in answer]
    assert len(set(flat)) > len(flat) // 8, "answers that repeat themselves show little"
    passes, num_tokens = engine.stats().num_denoising_passes, engine.stats().num_output_tokens
    assert num_tokens == len(flat) and passes <= sum(count for _, _, count in answers)
    if diffusion.threshold == 0:
        assert passes == sum(
            -(-(len(prompt) % found.canvas + most) // found.canvas) for (prompt, _), (_, most) in zip(jobs, lengths)
        )


def test_thresholds_matter(folder: Path) -> None:
    """Or the loop and the engine agree on nothing."""
    found, prompt = example("sdar", folder), some_tokens(9)
    counts = {threshold: found.loop(threshold=threshold).generate(prompt, 40) for threshold in (0.0, 0.8, 0.95, 1.0)}
    assert len({str(answer) for answer, _, _ in counts.values()}) >= 2
    passes = [count for _, _, count in counts.values()]
    assert passes == sorted(passes) and passes[0] < passes[2] < passes[3]


@pytest.mark.parametrize(
    "kernels", [REFERENCE, {"paged_attention_prefill": "torch", "paged_attention_decode": "torch"}], ids=["reference", "torch"]
)
def test_other_kernels(kernels: dict[str, str], folder: Path) -> None:
    for kind in ("sdar", "llada2"):
        found, prompt = example(kind, folder), some_tokens(37)
        assert tokens(run(build(found, kernels), [(prompt, greedy(11))])) == [[found.loop().generate(prompt, 11)[0]]]


@pytest.mark.parametrize("canvas", [1, 2, 8])
def test_other_canvases(canvas: int, folder: Path) -> None:
    found = replace(example("sdar", folder), canvas=canvas)
    jobs = [(some_tokens(count, count), greedy(13)) for count in (2, 15, 16)]
    engine = build(found, architecture={"block_size": canvas})
    assert tokens(run(engine, jobs)) == [[found.loop().generate(prompt, 13)[0]] for prompt, _ in jobs]


def test_causal_prompts(folder: Path) -> None:
    found = example("sdar", folder)
    jobs = [(some_tokens(count, count), greedy(13)) for count in (3, 14, 40)]
    expected = [[found.loop(causal_prompt=True).generate(prompt, 13)[0]] for prompt, _ in jobs]
    assert expected != [[found.loop().generate(prompt, 13)[0]] for prompt, _ in jobs]
    scheduler = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=16)
    engine = build(found, architecture={"block_causal_prompt": False}, scheduler=scheduler)
    assert tokens(run(engine, jobs)) == expected
    assert engine.config.cache.prefix_caching is False
    with pytest.raises(ValueError, match=r"cache\.prefix_caching=true.*block_causal_prompt"):
        build(found, architecture={"block_causal_prompt": False}, cache=CacheConfig(prefix_caching=True))


def test_ends_within_a_canvas(folder: Path) -> None:
    found, prompt = example("sdar", folder), some_tokens(10)
    whole, _, _ = found.loop().generate(prompt, 30)
    for nth in range(4, 12):
        end = whole[nth]
        expected = whole[: whole.index(end) + 1]
        engine = build(found, architecture={"eos_token_id": end})
        by_eos, ignored, by_stop_token = run(
            engine,
            [
                (prompt, greedy(30)),
                (prompt, greedy(30, ignore_eos=True)),
                (prompt, greedy(30, ignore_eos=True, stop_token_ids=[end])),
            ],
        )
        assert tokens([by_eos, ignored, by_stop_token]) == [[expected], [whole], [expected]]
        reasons = [(o.outputs[0].finish_reason, o.outputs[0].stop_reason) for o in (by_eos, ignored, by_stop_token)]
        assert reasons == [("stop", None), ("length", None), ("stop", end)]
        assert engine.kv_usage == 0


def test_an_end_before_min_tokens_is_no_token(folder: Path) -> None:
    found, prompt = example("sdar", folder), some_tokens(10)
    whole, _, _ = found.loop().generate(prompt, 30)
    end = whole[5]
    (output,) = run(build(found, architecture={"eos_token_id": end}), [(prompt, greedy(30, min_tokens=20))])
    (answer,) = output.outputs
    assert end not in answer.token_ids[:20] and len(answer.token_ids) >= 20


def test_the_defaults_of_a_checkpoint_ask_for_nothing_that_cannot_work(folder: Path, tmp_path: Path) -> None:
    found, recommended = example("sdar", folder), {"repetition_penalty": 1.1, "temperature": 0.5, "do_sample": True}
    own = shutil.copytree(found.folder, tmp_path / "own")
    (own / "generation_config.json").write_text(json.dumps(recommended))
    params = build(replace(found, folder=own)).inputs.default_params()
    assert (params.temperature, params.repetition_penalty) == (0.5, 1.0)


def test_a_token_is_settled_above_the_threshold_and_of_equals_the_first() -> None:
    def settle(probs: list[float], threshold: float) -> tuple[list[int], list[int]]:
        request = Request("0", [1, 2, 3], greedy(9), 20)
        denoising = Denoising(8, MASK, DiffusionConfig(threshold))
        assert denoising.tokens(request, 3, 8) == [MASK] * 5
        output = StepOutput(0, [7, *range(10, 15)], confidences=[0.0, *map(math.log, probs)])
        return denoising.settle(request, output, slice(1, 6)), request.settled

    assert settle([0.5, 0.5, 0.5, 0.5, 0.5], 0.5) == ([10], [MASK] * 4)
    assert settle([0.4, 0.6, 0.5, 0.6, 0.1], 0.5) == ([], [MASK, 11, MASK, 13, MASK])
    assert settle([1.0, 1.0, 1.0, 1.0, 1.0], 1.0) == ([10], [MASK] * 4)
    assert settle([0.6, 0.6, 0.4, 0.6, 0.5], 0.5) == ([10, 11], [MASK, 13, MASK])
    assert settle([0.6, 0.6, 0.7, 0.6, 0.8], 0.5) == ([10, 11, 12, 13, 14], [])


def test_a_mask_is_no_token(folder: Path) -> None:
    """However probable the model, or the request, thinks it."""
    found, prompt = example("sdar", folder), some_tokens(10)
    (output,) = run(build(found), [(prompt, greedy(20, logit_bias={MASK: 100.0}))])
    assert tokens([output]) == [[found.loop().generate(prompt, 20)[0]]]


def test_stop_strings_and_streams(folder: Path) -> None:
    """A stop string ends the answer where it ends in the text, whatever else the pass settled."""
    found, prompt = example("sdar", folder), some_tokens(10)
    engine = build(found, tokenizer="tiny", diffusion=DiffusionConfig(threshold=0.0))
    whole, _, _ = found.loop(threshold=0.0).generate(prompt, 24)
    (plain,) = run(engine, [(prompt, greedy(24))])
    assert tokens([plain]) == [[whole]]
    text = plain.outputs[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    (stopped,) = run(engine, [(prompt, greedy(24, stop=stop))])
    assert stopped.outputs[0].text == text[: text.index(stop)] and stopped.outputs[0].stop_reason == stop
    assert whole[: len(stopped.outputs[0].token_ids)] == list(stopped.outputs[0].token_ids)
    engine.add_request("stream", {"prompt_token_ids": prompt}, greedy(24, output_kind=RequestOutputKind.DELTA))
    parts, pieces = [], ""
    while engine.has_unfinished():
        for output in engine.step():
            parts.append(list(output.outputs[0].token_ids))
            pieces += output.outputs[0].text
    assert list(chain.from_iterable(parts)) == whole and pieces == text and max(map(len, parts)) == found.canvas


def test_logprobs_are_of_the_pass_that_settled_a_token(folder: Path) -> None:
    found, prompt = example("sdar", folder), some_tokens(7)
    answer, expected, _ = found.loop(threshold=0.3).generate(prompt, 18)
    engine = build(found, diffusion=DiffusionConfig(threshold=0.3))
    with_top, without = run(engine, [(prompt, greedy(18, logprobs=2)), (prompt, greedy(18))])
    assert tokens([with_top, without]) == [[answer], [answer]] and without.outputs[0].logprobs is None
    rows = with_top.outputs[0].logprobs
    assert rows is not None and [row[token].rank for row, token in zip(rows, answer)] == [1] * 18
    assert [row[token].logprob for row, token in zip(rows, answer)] == pytest.approx(expected, abs=1e-4)
    assert {len(row) for row in rows} == {2} and not any(MASK in row for row in rows)
    assert with_top.outputs[0].cumulative_logprob == pytest.approx(sum(expected), abs=1e-3)


def test_seeds_make_tokens_that_can_be_had_again(folder: Path) -> None:
    found, prompt = example("sdar", folder), some_tokens(11)
    params = SamplingParams(temperature=1.5, seed=7, n=3, max_tokens=14)
    engine = build(found, cache=CacheConfig(4, num_blocks=100, prefix_caching=True))
    (several,), (again,) = (tokens(run(engine, [(prompt, params)])) for _ in range(2))
    singles = [(prompt, replace(params, n=1, seed=7 + i)) for i in range(3)]
    assert several == again == [single[0] for single in tokens(run(build(found), singles))]
    assert len({tuple(answer) for answer in several}) == 3 and engine.stats().num_forks == 0
    cold = replace(params, n=1, temperature=1e-4)
    assert tokens(run(engine, [(prompt, cold)])) == [[found.loop().generate(prompt, 14)[0]]]


def test_a_draw_is_of_the_models_distribution(folder: Path) -> None:
    """The first pass of a canvas that is settled at once: many seeds against the probabilities of the loop's model."""
    found, prompt, count = example("sdar", folder), some_tokens(8), 400
    sees = torch.ones(12, 12, dtype=torch.bool)
    sees[:4, 4:] = sees[4:8, 8:] = False
    logits = found.logits([*prompt, *[MASK] * 4], sees)[8].double()
    logits[MASK] = -torch.inf
    probs = (logits / 2.0).softmax(-1)
    engine = build(found, diffusion=DiffusionConfig(threshold=0.0), scheduler=SchedulerConfig(max_num_seqs=100))
    jobs = [(prompt, SamplingParams(temperature=2.0, seed=seed, max_tokens=1)) for seed in range(count)]
    drawn = torch.bincount(torch.tensor([answer[0][0] for answer in tokens(run(engine, jobs))]), minlength=VOCAB)
    likely = probs > 0.03
    error = (drawn[likely] / count - probs[likely]).abs() / (probs[likely] * (1 - probs[likely]) / count).sqrt()
    assert likely.sum() >= 3 and error.max() < 4


def test_the_llm_generates_and_a_run_says_how_many_passes_it_took(folder: Path) -> None:
    found, prompts = example("sdar", folder), [some_tokens(count, count) for count in (6, 9)]
    settings: dict[str, Any] = {"dtype": "float32", "skip_tokenizer_init": True, "num_gpu_blocks_override": 50}
    llm = LLM(str(found.folder), diffusion_config={"threshold": 0.0}, **settings)
    expected = [[found.loop(threshold=0.0).generate(prompt, 10)[0]] for prompt in prompts]
    assert tokens(llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy(10))) == expected
    workload = [WorkloadRequest(0.0, prompt, greedy(10), user) for user, prompt in enumerate(prompts)]
    metrics = compute_metrics(run_workload([llm.engine], workload), SLOConfig())
    assert metrics["num_denoising_passes"] == 3 + 3 and "chunk_gap_mean_s" in metrics and metrics["tokens_per_pass"] == 20 / 6


SHARED = some_tokens(44, 99)


def random_jobs(rng: random.Random, canvas: int) -> list[Job]:
    jobs = []
    for index in range(rng.randint(4, 9)):
        prompt = SHARED[: rng.randrange(0, 44)] + some_tokens(rng.randint(1, canvas + 3), rng.randrange(10**6))
        temperature = rng.choice([0.0, 0.8, 1.3])
        params = SamplingParams(
            temperature=temperature,
            n=rng.choice([1, 1, 2]) if temperature else 1,
            seed=index,
            max_tokens=rng.randint(1, 3 * canvas if canvas < 32 else 40),
            top_k=rng.choice([0, 20]),
            logit_bias={500: 3.0} if rng.random() < 0.3 else None,
        )
        jobs.append((prompt, params))
    return jobs


def check_mixes(kind: str, folder: Path, seeds: Sequence[int]) -> None:
    """A request's tokens are the same whoever is beside it, and whatever happens to it on the way."""
    found, canvas = example(kind, folder), CANVAS[kind]
    happened = {"preempted": 0, "chunked": 0, "found": 0, "saved": 0}
    for threshold in (0.9, 0.2):
        diffusion = DiffusionConfig(threshold)
        alone = build(found, REFERENCE, diffusion=diffusion, cache=CacheConfig(num_blocks=400, prefix_caching=False))
        for seed in seeds[threshold < 0.5 :: 2]:
            rng = random.Random(seed)
            jobs = random_jobs(rng, canvas)
            expected = [tokens(run(alone, [job]))[0] for job in jobs]
            size, shares = rng.choice([canvas, 2 * canvas, canvas // 2, 6]), None
            longest = max(len(prompt) + (params.max_tokens or 0) for prompt, params in jobs)
            num_blocks = -(-(longest + canvas) // size) + 1 + rng.choice([0, 4, 10, 200])
            scheduler = SchedulerConfig(
                policy=rng.choice(["fcfs", "priority"]),
                max_num_seqs=rng.choice([2, 8]),
                max_num_batched_tokens=rng.choice([canvas, 2 * canvas + 1, 5 * canvas, 512]),
            )
            if size % canvas == 0:
                shares = rng.choice([True, True, False])
            engine = build(
                found,
                REFERENCE,
                diffusion=diffusion,
                cache=CacheConfig(size, num_blocks, prefix_caching=shares),
                scheduler=scheduler,
            )
            assert tokens(run(engine, jobs)) == expected, seed
            if engine.config.cache.prefix_caching:  # with what the first left there
                assert tokens(run(engine, jobs)) == expected, seed
            stats = engine.stats()
            happened["preempted"] += stats.num_preemptions
            happened["chunked"] += stats.num_chunked_prefills
            happened["found"] += stats.prefix_hit_tokens
            happened["saved"] += stats.num_output_tokens > stats.num_denoising_passes
            assert engine.kv_usage == 0
    assert all(happened.values()), happened


def test_mixes_change_nothing(folder: Path) -> None:
    check_mixes("sdar", folder, range(1, 11))


def test_mixes_of_large_canvases_change_nothing(folder: Path) -> None:
    check_mixes("llada2", folder, (6, 7, 9, 14))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mixes_change_nothing(kind: str, folder: Path) -> None:
    check_mixes(kind, folder, range(100, 300))


def test_aborts_lose_nothing_of_the_others(folder: Path) -> None:
    found, rng = example("sdar", folder), random.Random(1)
    jobs = [(some_tokens(count, count), greedy(17)) for count in range(3, 19)]
    engine = build(found, cache=CacheConfig(4, num_blocks=22), scheduler=SchedulerConfig(max_num_seqs=5))
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), prompt, params)
    doomed, done = {"1", "4", "6", "11"}, dict[str, RequestOutput]()
    while engine.has_unfinished():
        if doomed and rng.random() < 0.4:
            engine.abort([doomed.pop()])
        done |= {output.request_id: output for output in engine.step() if output.finished}
    for index in set(range(len(jobs))) - {1, 4, 6, 11}:
        assert tokens([done[str(index)]]) == [[found.loop().generate(jobs[index][0], 17)[0]]]
    assert engine.kv_usage == 0 and engine.stats().num_preemptions > 0


def test_logits_that_are_no_numbers_end_their_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(example("sdar", folder))
    model: Any = engine.executor._model  # type: ignore[attr-defined]
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda *given: logits(*given).fill_(torch.nan))
    (output,) = run(engine, [(some_tokens(5), greedy(9))])
    assert output.outputs[0].finish_reason == "error" and not output.outputs[0].token_ids
    monkeypatch.undo()
    (output,) = run(engine, [(some_tokens(5), greedy(9))])
    assert len(output.outputs[0].token_ids) == 9


def test_the_longest_sequence_ends_with_a_canvas(folder: Path) -> None:
    found, prompt = example("sdar", folder), some_tokens(70)
    engine = build(found, max_model_len=80)
    (output,) = run(engine, [(prompt, greedy(50))])
    assert tokens([output]) == [[found.loop().generate(prompt, 10)[0]]] and output.outputs[0].finish_reason == "length"
    with pytest.raises(ValueError, match=r"model\.max_model_len=81 cannot work.*4 tokens at a time"):
        build(found, max_model_len=81)
    assert build(found, architecture={"max_position_embeddings": 255}).executor.max_model_len == 252


def test_without_chunks_a_request_has_room_for_its_canvas(folder: Path) -> None:
    engine = build(
        example("sdar", folder), scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, chunked_prefill=False)
    )
    (output,) = run(engine, [(some_tokens(12), greedy(None))])
    assert len(output.outputs[0].token_ids) == 4
    with pytest.raises(ValueError, match="up to 20 tokens"):
        engine.add_request("long", some_tokens(16), greedy(1))


REFUSED = [
    ("speculative_config.method=ngram", {"speculative_config": SpeculativeConfig("ngram", 2)}),
    ("lora.enabled", {"lora": LoraConfig(enabled=True)}),
    ("parallel.tp=2", {"parallel": ParallelConfig(tp=2)}),
    ("scheduler.in_flight_steps=2", {"scheduler": SchedulerConfig(in_flight_steps=2)}),
    ("scheduler.max_num_batched_tokens=3", {"scheduler": SchedulerConfig(max_num_batched_tokens=3)}),
    ("cache.prefix_caching=true", {"cache": CacheConfig(6, prefix_caching=True)}),
    ("diffusion.threshold=1.5", {"diffusion": DiffusionConfig(1.5)}),
    ("diffusion.max_passes=-1", {"diffusion": DiffusionConfig(max_passes=-1)}),
    ("mask_token_id=2048", {"architecture": {"mask_token_id": VOCAB}}),
    ("no 'mask_token_id'", {"architecture": {"mask_token_id": None}}),
    ("block_size=0", {"architecture": {"block_size": 0}}),
    ("no 'block_size'", {"architecture": {"block_size": None}}),
    ("no 'block_causal_prompt'", {"architecture": {"block_causal_prompt": None}}),
    ("'sdar', is served by the native decoder alone, and it denoises", {"architecture": {"use_sliding_window": True}}),
]


@pytest.mark.parametrize(("said", "settings"), REFUSED, ids=[said for said, _ in REFUSED])
def test_what_cannot_work_is_refused_by_name(
    said: str, settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from framework.worker import local_executor

    monkeypatch.setattr(local_executor, "load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError) as refused:
        build(example("sdar", folder), **settings)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("said", "field"), [("score_function 'softmax'", {"score_function": "softmax"}), ("have no norms", {"use_qk_norm": False})]
)
def test_other_llada2_models_are_refused_by_name(said: str, field: dict[str, Any]) -> None:
    model = ModelConfig("made up", load_format="dummy", architecture={**LLADA2, **field})
    with pytest.raises(ValueError, match=f"'llada2_moe', is served by the native decoder alone, and .*{said}"):
        read_model(model)
    model = ModelConfig("made up", load_format="dummy", architecture=LLADA2, backend="transformers")
    with pytest.raises(ValueError, match=r"is served by the native decoder alone, and model\.backend=transformers"):
        read_model(model)


def test_workers_are_refused_by_name(folder: Path) -> None:
    found = EngineConfig(ModelConfig(str(example("sdar", folder).folder), skip_tokenizer=True))
    with pytest.raises(ValueError, match=r"executor\.kind=distributed"):
        build_engine(replace(found, executor=replace(found.executor, kind="distributed")))


def test_what_is_for_other_models_is_refused_by_name(folder: Path) -> None:
    found = example("sdar", folder)
    with pytest.raises(ValueError, match="cannot pool"):
        build_engine(replace(config(found), model=ModelConfig(str(found.folder), runner="pooling", convert="embed")))
    with pytest.raises(ValueError, match="teacher forcing is for models that say what token is next"):
        TeacherForcing(config(found), read_model(ModelConfig(str(found.folder))), 64, 16)
    with pytest.raises(ValueError, match=r"diffusion\.threshold=0\.5 cannot work: 'tiny' generates token by token"):
        build_engine(EngineConfig(diffusion=DiffusionConfig(0.5)))
    with pytest.raises(ValueError, match="every token sees all others"):
        read_model(ModelConfig("none", load_format="dummy", architecture={"model_type": "llada", **SIZES}))
    with pytest.raises(ValueError, match="diffusion_config has no 'steps'; it has threshold, max_passes"):
        LLM(diffusion_config={"steps": 3})
    llm = LLM(config(found))
    with pytest.raises(ValueError, match="beam search cannot work"):
        llm.beam_search({"prompt_token_ids": [5]}, BeamSearchParams(beam_width=2, max_tokens=3))


ASKED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.1},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"prompt_logprobs": 0},
    {"bad_words": ["a"]},
    {"structured_outputs": StructuredOutputsParams(regex="a+")},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: next(iter(asked)))
def test_what_a_request_cannot_ask_for_is_refused_by_name(asked: dict[str, Any], folder: Path) -> None:
    engine = build(example("sdar", folder), tokenizer="tiny")
    with pytest.raises(ValueError, match=f"{next(iter(asked))}=.*block diffusion"):
        engine.add_request("wrong", [5], greedy(2, **asked))
    with pytest.raises(ValueError, match=rf"allowed_token_ids=\[{MASK}\].*the mask of the model is never output"):
        engine.add_request("masked", [5], greedy(2, allowed_token_ids=[MASK]))
    with pytest.raises(ValueError, match=f"token id {MASK}, the mask"):
        engine.add_request("masks", [5, MASK], greedy(2))
    (output,) = run(engine, [([5], greedy(2))])
    assert len(output.outputs[0].token_ids) == 2


@pytest.mark.parametrize("scheme", ["rtn-int4", "int8", "fp8"])
def test_quantized_weights(scheme: str, folder: Path) -> None:
    """The same alone as in a batch."""
    found, jobs = example("sdar", folder), [(some_tokens(count, count), greedy(9)) for count in (3, 12, 17)]
    engine = build(found, REFERENCE, quant=QuantConfig(scheme, group_size=32))
    assert tokens(run(engine, jobs)) == [tokens(run(engine, [job]))[0] for job in jobs]


@pytest.mark.parametrize("kind", KINDS)
def test_dummy_weights(kind: str, folder: Path) -> None:
    raw = json.loads((example(kind, folder).folder / "config.json").read_text())
    model = ModelConfig("none", load_format="dummy", dtype="float32", skip_tokenizer=True, architecture=raw)
    (output,) = run(build_engine(EngineConfig(model, CacheConfig(num_blocks=50))), [([5, 6], greedy(3))])
    assert len(output.outputs[0].token_ids) == 3
