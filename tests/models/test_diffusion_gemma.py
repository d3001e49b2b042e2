"""DiffusionGemma: tokens are those of the library's ``generate`` from the same random canvases, whatever happens around."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from transformers.models.diffusion_gemma import generation_diffusion_gemma as library

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, QuantConfig, SchedulerConfig
from framework.engine.diffusion import DiffusionConfig
from framework.engine.engine import Engine
from framework.engine.redrawing import Redrawing, Redraws
from framework.engine.request import FAILED_ROW, Request
from framework.engine.step import StepOutput
from framework.models.read import read_model
from framework.models.transformers_model import servable_config
from framework.outputs import RequestOutput
from framework.worker.canvases import Canvases
from framework.worker.step_rows import StepRows

SHAPE = Path(__file__).parents[2] / "conf" / "model" / "diffusion-gemma-26b-a4b.yaml"
CANVAS, WINDOW, VOCAB, EOS = 8, 6, 320, 1
REFERENCE = {"default": "reference"}
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "max_position_embeddings": 256,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "eos_token_id": EOS,
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "position_embedding_size": 16,
}
ARCHITECTURE = {"model_type": "diffusion_gemma", "text_config": TEXT, "vision_config": VISION, "canvas_length": CANVAS}
GENERATION = {
    "max_denoising_steps": 6,
    "t_min": 0.3,
    "t_max": 0.9,
    "sampler_config": {"entropy_bound": 9.0, "_cls_name": "EntropyBoundSamplerConfig"},
    "stability_threshold": 1,
    "confidence_threshold": 100.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With weights that are no model's beginning: the encoder and the decoder differ in the factors of their layers, as published
    ones do."""
    found = tmp_path_factory.mktemp("diffusion-gemma")
    given = {name: value for name, value in ARCHITECTURE.items() if name != "model_type"}
    torch.manual_seed(0)
    model: Any = library_class()(transformers.AutoConfig.for_model("diffusion_gemma", **given))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.1)
            if "embed_tokens" in name:
                weight.mul_(3.0)
        for half, factor in ((model.model.encoder.language_model, 0.7), (model.model.decoder, 0.9)):
            for index, layer in enumerate(half.layers):
                layer.layer_scalar.fill_(factor + 0.05 * index)
    model.save_pretrained(found)
    (found / "generation_config.json").write_text(json.dumps({**GENERATION, "eos_token_id": EOS}))
    return found


def library_class() -> Any:
    return transformers.DiffusionGemmaForBlockDiffusion


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return library_class().from_pretrained(folder).eval()


def generate(theirs: Any, prompt: list[int], params: SamplingParams, **given: Any) -> list[int]:
    """By the library, with our random tokens, and the most probable token where it would draw."""
    ours, passes, place = Redrawing(CANVAS, VOCAB, Redraws(1, 0, 1, 1, 1, 1)), 0, len(prompt)

    def random_canvas(*_: Any, **__: Any) -> torch.Tensor:
        nonlocal passes
        drawn = ours._random(Request("", [0] * place, params, 10**9), passes)
        passes += 1
        return torch.tensor([drawn])

    def finalize(**keywords: Any) -> Any:
        nonlocal passes, place
        passes, place = 0, place + CANVAS
        return library.DiffusionGemmaGenerationMixin._finalize_canvas(**keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.EntropyBoundSampler, "initialize_canvas", random_canvas)
        patch.setattr(torch, "multinomial", lambda probs, num_samples: probs.argmax(-1, keepdim=True))
        patch.setattr(theirs, "_finalize_canvas", finalize, raising=False)
        found = theirs.generate(torch.tensor([prompt]), max_new_tokens=params.max_tokens, **given)
    output: list[int] = found.sequences[0, len(prompt) :].tolist()[: params.max_tokens]
    return output[: output.index(EOS) + 1] if EOS in output and not params.ignore_eos else output


def build(folder: Path, **settings: Any) -> Engine:
    cache = settings.pop("cache", CacheConfig(16, num_blocks=100))
    cache.check_invariants = True
    model = ModelConfig(str(folder), skip_tokenizer=True, max_logprobs=-1, max_model_len=settings.pop("max_model_len", None))
    scheduler = settings.pop("scheduler", SchedulerConfig(max_num_seqs=8))
    return build_engine(EngineConfig(model, cache, scheduler, kernels=REFERENCE, num_threads=1, **settings))


def with_generation(folder: Path, to: Path, **given: Any) -> Path:
    """The checkpoint, with another generation_config.json."""
    for path in folder.iterdir():
        (to / path.name).symlink_to(path)
    (to / "generation_config.json").unlink()
    (to / "generation_config.json").write_text(json.dumps({**GENERATION, "eos_token_id": EOS, **given}))
    return to


Job = tuple[list[int], SamplingParams]


def run(engine: Engine, jobs: list[Job]) -> list[RequestOutput]:
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    done: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        done |= {output.request_id: output for output in engine.step() if output.finished}
    return [done[str(index)] for index in range(len(jobs))]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(completion.token_ids) for output in outputs for completion in output.outputs]


def some_tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=count)


def greedy(max_tokens: int, seed: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, seed=seed, **more)


def jobs(*counts: int) -> list[Job]:
    return [(some_tokens(count, count), greedy(30, count, ignore_eos=count % 2 == 0)) for count in counts]


def expected(theirs: Any, asked: list[Job], **given: Any) -> list[list[int]]:
    ends = ({"eos_token_id": VOCAB} if params.ignore_eos else {} for _, params in asked)
    return [generate(theirs, prompt, params, **given, **end) for (prompt, params), end in zip(asked, ends)]


SETTING = {**GENERATION, "sampler_config": library.EntropyBoundSamplerConfig(9.0)}
SETTINGS: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"sampler_config": library.EntropyBoundSamplerConfig(1e4), "max_denoising_steps": 12}, True),
    ({"sampler_config": library.EntropyBoundSamplerConfig(1e4), "max_denoising_steps": 16, "stability_threshold": 2}, True),
    ({"sampler_config": library.EntropyBoundSamplerConfig(1e4), "max_denoising_steps": 12, "confidence_threshold": 0.25}, True),
    ({"stability_threshold": 0}, True),
    ({"max_denoising_steps": 1}, False),
]
"""What generation_config.json says, and whether canvases are done before they have had all their passes."""


@pytest.mark.parametrize(("given", "ends_early"), SETTINGS, ids=range(len(SETTINGS)))
def test_tokens_are_those_of_the_library(
    given: dict[str, Any], ends_early: bool, folder: Path, theirs: Any, tmp_path: Path
) -> None:
    told = {name: value if name != "sampler_config" else value.to_dict() for name, value in given.items()}
    engine = build(with_generation(folder, tmp_path, **told))
    asked, settings = jobs(4, 8, 17) if given else jobs(1, 2, 5, 7, 8, 9, 16, 30), {**SETTING, **given}
    wanted = expected(theirs, asked, **settings)
    assert tokens([run(engine, [job])[0] for job in asked]) == wanted
    before = engine.stats()
    assert tokens(run(engine, asked)) == wanted
    stats = engine.stats()
    most = sum(-(-len(output) // CANVAS) for output in wanted) * settings["max_denoising_steps"]
    assert (stats.num_denoising_passes - before.num_denoising_passes < most) == ends_early


def test_a_canvas_with_an_end_ends_there(folder: Path, theirs: Any) -> None:
    prompt, params = some_tokens(5, 1), greedy(40, 1)
    whole = expected(theirs, [(prompt, greedy(40, 1, ignore_eos=True))], **SETTING)[0]
    for place in (0, 3, CANVAS - 1, CANVAS, 2 * CANVAS + 5):
        end = whole[place]
        first = whole.index(end)
        found = run(build(folder), [(prompt, greedy(40, 1, stop_token_ids=[end]))])[0].outputs[0]
        assert list(found.token_ids) == generate(theirs, prompt, params, **{**SETTING, "eos_token_id": end})[: first + 1]
        assert list(found.token_ids) == whole[: first + 1] and found.finish_reason == "stop"


def test_bias_and_allowed_tokens_are_of_every_pass(folder: Path, theirs: Any) -> None:
    class Bias(transformers.LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + bias

    engine = build(folder)
    for asked in ({"logit_bias": {7: 4.0, 9: -100.0}}, {"allowed_token_ids": [4, 5, 6, 7, 8, 99]}):
        bias = torch.zeros(VOCAB)
        for token, value in asked.get("logit_bias", {}).items():
            bias[token] = value
        if allowed := asked.get("allowed_token_ids"):
            bias = torch.full((VOCAB,), -1e9).index_fill(0, torch.tensor(allowed), 0)
        prompt, params = some_tokens(11, 2), greedy(20, 3, ignore_eos=True, **asked)
        given = {**SETTING, "eos_token_id": VOCAB, "logits_processor": transformers.LogitsProcessorList([Bias()])}
        wanted = generate(theirs, prompt, params, **given)
        assert tokens(run(engine, [(prompt, params)])) == [wanted]
        assert not allowed or set(wanted) <= set(allowed)


def test_logprobs_are_those_of_the_last_pass(folder: Path) -> None:
    prompt = some_tokens(9, 5)
    found = run(build(folder), [(prompt, greedy(12, 5, logprobs=3, ignore_eos=True))])[0].outputs[0]
    assert found.logprobs is not None and len(found.logprobs) == 12
    for token, entry in zip(found.token_ids, found.logprobs):
        assert entry[token].rank == 1 and entry[token].logprob == max(one.logprob for one in entry.values()) and len(entry) == 3


def random_jobs(rng: random.Random) -> list[Job]:
    shared = some_tokens(60, 99)
    found = []
    for index in range(rng.randint(3, 7)):
        prompt = shared[: rng.randrange(0, 50)] + some_tokens(rng.randint(1, CANVAS + 3), rng.randrange(10**6))
        temperature = rng.choice([0.0, 1.0, 0.7])
        params = SamplingParams(
            temperature=temperature,
            n=rng.choice([1, 1, 2]) if temperature else 1,
            seed=index,
            max_tokens=rng.randint(1, 3 * CANVAS),
            top_k=rng.choice([0, 20]),
            logit_bias={50: 3.0} if rng.random() < 0.3 else None,
        )
        found.append((prompt, params))
    return found


def check_mixes(folder: Path, seeds: Sequence[int]) -> None:
    """A request's tokens are the same whoever is beside it, and whatever happens to it on the way."""
    happened = {"preempted": 0, "chunked": 0, "found": 0}
    passes = DiffusionConfig(max_passes=3)
    alone = build(folder, cache=CacheConfig(16, num_blocks=400, prefix_caching=False), diffusion=passes)
    for seed in seeds:
        rng = random.Random(seed)
        asked = random_jobs(rng)
        wanted = [tokens(run(alone, [job])) for job in asked]
        size, longest = rng.choice([4, 8, 6, 16]), max(len(prompt) + (params.max_tokens or 0) for prompt, params in asked)
        budget = rng.choice([CANVAS, 2 * CANVAS + 1, 5 * CANVAS, 512])
        full = -(-(longest + CANVAS) // size)
        windowed = min(full, -(-(WINDOW - 1) // size) + 1 - (1 - budget) // size)
        num_blocks = 1 + full + 2 * windowed + rng.choice([0, 4, 10, 200])
        scheduler = SchedulerConfig(
            policy=rng.choice(["fcfs", "priority"]), max_num_seqs=rng.choice([2, 8]), max_num_batched_tokens=budget
        )
        cache = CacheConfig(size, num_blocks, prefix_caching=rng.choice([True, True, False]))
        engine = build(folder, cache=cache, scheduler=scheduler, diffusion=passes)
        for _ in range(2):  # the second time with what the first left there
            assert [tokens([output]) for output in run(engine, asked)] == wanted, seed
        stats = engine.stats()
        happened["preempted"] += stats.num_preemptions
        happened["chunked"] += stats.num_chunked_prefills
        happened["found"] += stats.prefix_hit_tokens
        assert engine.kv_usage == 0
    assert all(happened.values()), happened


def test_mixes_change_nothing(folder: Path) -> None:
    check_mixes(folder, (1, 5, 9, 10))


@pytest.mark.slow
def test_many_mixes_change_nothing(folder: Path) -> None:
    check_mixes(folder, range(100, 300))


def test_outputs_end_where_the_model_does(folder: Path) -> None:
    """Its last canvas may lie beyond: what is there is computed, and not told."""
    engine = build(folder, max_model_len=32, cache=CacheConfig(4, num_blocks=60), diffusion=DiffusionConfig(max_passes=2))
    for length in range(24, 33):
        prompt = some_tokens(length - 1, 3)
        found = run(engine, [(prompt, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, seed=1))])[0].outputs[0]
        assert len(found.token_ids) == 33 - length and found.finish_reason == "length"


def test_drawn_tokens_are_the_seeds(folder: Path) -> None:
    engine, prompt = build(folder), some_tokens(9, 1)
    drawn = [tokens(run(engine, [(prompt, SamplingParams(max_tokens=8, seed=seed, ignore_eos=True))]))[0] for seed in (1, 1, 2, -1)]
    assert drawn[0] == drawn[1] and len({tuple(one) for one in drawn}) == 3


def test_random_tokens_are_of_one_seed_place_and_pass() -> None:
    ours, seen = Redrawing(CANVAS, VOCAB, Redraws(1, 0, 1, 1, 1, 1)), set[tuple[int, ...]]()
    for seed, place, num_passes in np.ndindex(2, 3, 3):
        seen.add(tuple(ours._random(Request("", [0] * (place + 1), greedy(1, seed), 10**9), num_passes)))
    assert len(seen) == 18


def test_a_token_of_no_number_fails_its_request() -> None:
    """A pass whose logits are NaN somewhere settles nothing, however sure the rest of it is."""
    ours, request = Redrawing(2, VOCAB, Redraws(1, 0, 1, 1, 1, 1)), Request("", [5], greedy(4, 1), 10**9)
    assert ours.tokens(request, 0, 3)[0] == 5
    output = StepOutput(0, [7, FAILED_ROW], entropies=[0.0, 0.0], best=[7, FAILED_ROW])
    assert ours.settle(request, output, slice(0, 2)) == [FAILED_ROW]


def test_passes_are_drawn_with_noise_of_their_own() -> None:
    canvases = Canvases(Redraws(4, 0.4, 0.8, 0.1, 1, 0.005), 3, 2, 5, torch.float32, torch.device("cpu"))
    rows = [StepRows.of(*map(np.array, ([2, 0], [2, 7], [first, 4], [2, 2]))) for first in (10, 10, 12, 12)]
    noises, heats = [], []
    for step in rows:
        said = canvases.begin(step)
        assert said.shape == (4, 5)
        canvases.keep(torch.ones(4, 5))
        noises.append(canvases.noise(torch.tensor([10, 11, 9, 10])).tolist())
        heats.append(canvases.heat())
        assert bool(said[:2].any()) == (len(noises) in (2, 4)) and bool(said[2:].any()) == (len(noises) > 1)
    assert len({tuple(noise[2:]) for noise in noises}) == 4 and noises[0][:2] == [10, 11]
    torch.testing.assert_close(torch.stack([heat[2] for heat in heats]), torch.tensor([0.8, 0.7, 0.6, 0.5]))
    torch.testing.assert_close(torch.stack([heat[0] for heat in heats]), torch.tensor([0.8, 0.7, 0.8, 0.7]))


def test_dummy_weights_generate() -> None:
    model = ModelConfig("made-up", load_format="dummy", architecture=ARCHITECTURE, max_model_len=64, skip_tokenizer=True)
    engine = build_engine(EngineConfig(model, CacheConfig(16, num_blocks=40), kernels=REFERENCE, num_threads=1))
    found = run(engine, [([5, 6, 7], SamplingParams(max_tokens=9, ignore_eos=True))])
    assert len(found[0].outputs[0].token_ids) == 9


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"canvas_length": -1}, {}, "canvas_length=-1"),
    ({"canvas_length": "8"}, {}, "canvas_length='8'"),
    ({"canvas_length": 0}, {}, "canvas_length=0"),
    ({"text_config": {**TEXT, "sliding_window": 0}}, {}, "sliding_window=0"),
    ({"text_config": {**TEXT, "top_k_experts": 5}}, {}, "top_k_experts=5, of num_experts=4"),
    ({"text_config": {**TEXT, "final_logit_softcapping": None}}, {}, "final_logit_softcapping=None"),
    ({"text_config": {**TEXT, "final_logit_softcapping": 0.0}}, {}, "final_logit_softcapping=0.0"),
    ({"tie_word_embeddings": False}, {}, "tie_word_embeddings=false"),
    ({"text_config": {**TEXT, "use_bidirectional_attention": "all"}}, {}, "use_bidirectional_attention='all'"),
    ({"text_config": 3}, {}, "text_config=3"),
    ({}, {"max_denoising_steps": 0}, "max_denoising_steps=0"),
    ({}, {"t_min": 0.9}, "t_min=0.9 and t_max=0.9"),
    ({}, {"t_max": "hot"}, "t_max='hot'"),
    ({}, {"stability_threshold": -1}, "stability_threshold=-1"),
    ({}, {"confidence_threshold": float("nan")}, "confidence_threshold=nan"),
    ({}, {"sampler_config": {"entropy_bound": True}}, "entropy_bound=True"),
    ({}, {"sampler_config": {"_cls_name": "Other"}}, "sampler_config of 'Other'"),
    ({}, {"sampler_config": 7}, "sampler_config=7"),
]


@pytest.mark.parametrize(("config", "generation", "told"), REFUSED, ids=[told for _, _, told in REFUSED])
def test_files_of_another_kind_are_refused(config: dict[str, Any], generation: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**ARCHITECTURE, **config}))
    (tmp_path / "generation_config.json").write_text(json.dumps({**GENERATION, **generation}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=re.escape(told)):
        read_model(ModelConfig(str(tmp_path)))


def test_what_it_cannot_have_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"diffusion\.threshold=0\.5 cannot work: .* goes by entropies"):
        build(folder, diffusion=DiffusionConfig(threshold=0.5))
    with pytest.raises(ValueError, match="denoises 8 tokens of a request at a time"):
        build(folder, scheduler=SchedulerConfig(max_num_batched_tokens=7))
    with pytest.raises(ValueError, match="cannot have quantized weights"):
        build(folder, quant=QuantConfig(scheme="int8"))
    with pytest.raises(ValueError, match=r"cannot run natively: .*diffusion_gemma"):
        read_model(ModelConfig(str(folder), backend="native"))
    engine = build(folder)
    for asked in ({"repetition_penalty": 1.5}, {"prompt_logprobs": 1}):
        with pytest.raises(ValueError, match="the model generates by block diffusion"):
            engine.add_request("x", {"prompt_token_ids": [5]}, SamplingParams(max_tokens=4, **asked))


def test_the_shape_has_the_published_number_of_parameters() -> None:
    """25.2 billion, as the model that it was made of; beside these a tower, and what reads canvases again."""
    config = ModelConfig(**{**yaml.safe_load(SHAPE.read_text()), "load_format": "dummy"})
    found = servable_config(config, read_model(config))
    with torch.device("meta"):
        model = transformers.AutoModelForMultimodalLM.from_config(found)
    of_text = (p.numel() for name, p in model.named_parameters() if "vision" not in name and "self_cond" not in name)
    assert round(sum(of_text) / 1e9, 1) == 25.2
