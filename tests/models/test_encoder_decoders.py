"""T5, BART and Whisper against transformers, on tiny random checkpoints."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, GraphConfig, LoraConfig, ModelConfig, ParallelConfig, QuantConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.prompts import EngineInput
from framework.models.architecture import Buckets
from framework.models.binding.attention import distance_buckets
from framework.speculation.config import SpeculativeConfig
from framework.worker.decode_graphs import DecodeGraphs
from framework.worker.devices import Cpu

from ..framework.engines import run, tokens

VOCAB = 211
SIZES = {"vocab_size": VOCAB, "d_model": 64, "eos_token_id": None, "pad_token_id": 1, "decoder_start_token_id": 2}
T5 = {**SIZES, "d_kv": 24, "d_ff": 96, "num_layers": 2, "num_heads": 4}
BART = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, **SIZES, "forced_eos_token_id": None, "bos_token_id": None}
SECONDS = 4
CONFIGS: dict[str, Any] = {
    "t5": lambda: transformers.T5Config(**T5),
    "t5_gated": lambda: transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": lambda: transformers.BartConfig(**BART, max_position_embeddings=300, scale_embedding=True),
    "whisper": lambda: transformers.WhisperConfig(
        **BART,
        max_source_positions=SECONDS * 50,
        max_target_positions=300,
        num_mel_bins=20,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    ),
}
TEXT = ("t5", "t5_gated", "bart")


@dataclass
class Example:
    folder: Path
    library: Any

    def generated(self, encoded: Any, begin: list[int], count: int, **more: Any) -> list[int]:
        """Greedily, by transformers."""
        given = {"input_features": encoded} if encoded.dtype.is_floating_point else {"input_ids": encoded}
        ids = torch.tensor([begin])
        kind = transformers.GenerationMixin.generate  # not Whisper's own, which cuts sound into windows
        settings = {"max_new_tokens": count, "do_sample": False, "use_cache": True, **more}
        return kind(self.library, **given, decoder_input_ids=ids, **settings)[0, len(begin) :].tolist()


@cache
def example(kind: str, folder: Path) -> Example:
    config = CONFIGS[kind]()
    torch.manual_seed(5)
    if config.model_type == "whisper":
        model: Any = transformers.WhisperForConditionalGeneration(config)
    else:
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if kind == "t5_gated":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data += 0.2 * torch.randn_like(weight)
        elif "relative" in name or "position" in name:
            weight.data.normal_(std=4.0 if kind == "bart" else 2.0)
        else:
            inner = 1.0 if any(part in name for part in ("embed", "shared", "lm_head", "encoder_attn.out")) else 2.5
            if kind == "bart" and ("fc" in name or ("decoder" in name and name.endswith(("v_proj.weight", "out_proj.weight")))):
                inner *= 0.3  # or norms behind these leave nothing of the token, and all answers repeat one
            if kind == "t5" and "shared" in name:
                inner *= 0.03  # which give logits too: of each token the likeliest next one would be itself
            inner *= 24**-0.5 if name.endswith("Attention.q.weight") else 1.0  # of T5, which does not scale its scores
            weight.data.normal_(std=inner * weight[0].numel() ** -0.5)
    if kind == "bart":
        model.final_logits_bias.normal_(std=0.3)
    model.generation_config.eos_token_id = None
    own = folder / kind
    model.eval().save_pretrained(own)
    if kind == "whisper":
        transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=SECONDS).save_pretrained(own)
    return Example(own, model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoder-decoders")


def build(found: Example, kernels: dict[str, str] | None = None, **settings: Any) -> Engine:
    cache = settings.pop("cache", CacheConfig(num_blocks=400))
    cache.check_invariants = True
    scheduler = settings.pop("scheduler", SchedulerConfig(max_num_seqs=8))
    model = ModelConfig(str(found.folder), dtype="float32", skip_tokenizer=True, max_logprobs=-1)
    return build_engine(EngineConfig(model, cache, scheduler, kernels=kernels or {}, num_threads=1, **settings))


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=count)


def waveform(seed: int = 0, seconds: float = 1.5) -> np.ndarray:
    times, rng = np.arange(int(16000 * seconds)) / 16000, np.random.default_rng(seed)
    tones = [np.sin(2 * np.pi * rng.uniform(100, 4000) * times) * rng.uniform(0.1, 1) for _ in range(3)]
    return (sum(tones) + 0.05 * rng.standard_normal(len(times))).astype(np.float32)


def sound(seed: int = 0) -> dict[str, Any]:
    return {"multi_modal_data": {"audio": (waveform(seed), 16000)}}


def of_library(found: Example, prompt: Any) -> torch.Tensor:
    """What its encoder takes."""
    if "multi_modal_data" not in prompt:
        return torch.tensor([prompt["prompt_token_ids"]])
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(found.folder)
    return extractor(prompt["multi_modal_data"]["audio"][0], sampling_rate=16000, return_tensors="pt").input_features


def prompts(kind: str) -> list[Any]:
    if kind == "whisper":
        return [sound(1), sound(2)]
    return [{"prompt_token_ids": some_tokens(count, count)} for count in (37, 3)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_tokens_are_those_of_generate(kind: str, folder: Path) -> None:
    """With prompts for the decoder and without, side by side; T5 past its last bucket of distances."""
    found, params = example(kind, folder), SamplingParams(temperature=0, max_tokens=150 if kind.startswith("t5") else 64)
    begins = [None, some_tokens(21, 4)]
    pairs = [(prompt, begin) for prompt in prompts(kind) for begin in begins]
    jobs = [
        (prompt if begin is None else {"encoder_prompt": prompt, "decoder_prompt": {"prompt_token_ids": begin}}, params)
        for prompt, begin in pairs
    ]
    assert params.max_tokens is not None
    expected = [[found.generated(of_library(found, prompt), [2, *(begin or ())], params.max_tokens)] for prompt, begin in pairs]
    assert all(len(set(answer)) > 15 for (answer,) in expected), "answers that repeat themselves show little"
    assert len({str(answer) for answer in expected}) > 1, "answers depend on prompts"
    assert tokens(run(build(found), jobs)) == expected


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "kernels", [{}, {"default": "reference"}, {"paged_attention_prefill": "torch", "paged_attention_decode": "torch"}]
)
def test_logits_of_decoder_prompts(kind: str, kernels: dict[str, str], folder: Path) -> None:
    """By the log-probabilities of prompts, in chunks; and of the token after them."""
    found, begin = example(kind, folder), some_tokens(180, 9)
    prompt = prompts(kind)[0]
    given = {"encoder_prompt": prompt, "decoder_prompt": {"prompt_token_ids": begin}}
    scheduler = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=64)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, logprobs=-1)
    (output,) = run(build(found, kernels, scheduler=scheduler), [(given, params)])
    name = "input_features" if kind == "whisper" else "input_ids"
    with torch.inference_mode():
        logits = found.library(**{name: of_library(found, prompt)}, decoder_input_ids=torch.tensor([[2, *begin]])).logits[0]
    expected = logits.double().log_softmax(-1)
    assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    rows = [*output.prompt_logprobs[1:], output.outputs[0].logprobs[0]]
    assert len(rows) == len(expected) == 181
    for row, wanted in zip(rows, expected):
        assert row is not None
        got = torch.tensor([row[token].logprob for token in range(VOCAB)], dtype=torch.float64)
        assert (got - wanted).abs().max() < 1e-4
    assert output.prompt_token_ids == [2, *begin]


def test_a_decoder_may_have_another_depth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    library = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**T5, "num_decoder_layers": 3})).eval()
    library.save_pretrained(tmp_path)
    ids, begin = some_tokens(9), some_tokens(5, 1)
    given = {"encoder_prompt": {"prompt_token_ids": ids}, "decoder_prompt": {"prompt_token_ids": begin}}
    (output,) = run(build(Example(tmp_path, library)), [(given, SamplingParams(temperature=0, max_tokens=1, logprobs=-1))])
    with torch.inference_mode():
        logits = library(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[2, *begin]])).logits[0, -1]
    assert output.outputs[0].logprobs is not None
    got = torch.tensor([output.outputs[0].logprobs[0][token].logprob for token in range(VOCAB)])
    torch.testing.assert_close(got, logits.log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("number", "most"), [(32, 128), (8, 20), (16, 500)])
def test_buckets_are_those_of_the_library(number: int, most: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    back = -torch.arange(most + 400)
    theirs = T5Attention._relative_position_bucket(back, bidirectional=False, num_buckets=number, max_distance=most)
    ours = distance_buckets(Buckets(number, most))
    assert torch.equal(ours[(-back).clamp_max(most)], theirs)


@pytest.mark.parametrize("kind", CONFIGS)
def test_decodes_are_replayed(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests for which the encoder gave more and less, that come and go."""
    replay, replayed = DecodeGraphs.run, list[int]()
    monkeypatch.setattr(DecodeGraphs, "run", lambda self, rows: replayed.append(len(rows.seats)) or replay(self, rows))
    lengths = [60, 3, 33, 150, 9]
    jobs = [
        (
            sound(i) if kind == "whisper" else {"prompt_token_ids": some_tokens(n, n)},
            SamplingParams(temperature=0, max_tokens=5 + 3 * i),
        )
        for i, n in enumerate(lengths)
    ]
    found, small = example(kind, folder), CacheConfig(block_size=2, num_blocks=600)  # tables of many columns
    settings: dict[str, Any] = {"scheduler": SchedulerConfig(max_num_seqs=3), "cache": small}
    expected = tokens(run(build(found, graphs=GraphConfig(enabled=False), **settings), jobs))
    assert not replayed
    assert tokens(run(build(found, **settings), jobs)) == expected
    assert set(replayed) == {1, 2, 3}, "every step of decodes"
    assert tokens(run(build(found, graphs=GraphConfig(batch_sizes=[3]), **settings), jobs)) == expected


def test_tokens_that_are_suppressed(folder: Path, tmp_path: Path) -> None:
    """Never, and as the first; the decoder begins with what is forced."""
    found = example("whisper", folder)
    free = found.generated(of_library(found, sound(1)), [2, 9, 8], 30)
    settings: dict[str, Any] = {"suppress_tokens": [free[3], free[7], VOCAB + 5], "begin_suppress_tokens": [free[0]]}
    shutil.copytree(found.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({**settings, "decoder_start_token_id": 2, "forced_decoder_ids": [[1, 9], [2, 8]]})
    )
    settings["suppress_tokens"].pop()
    expected = found.generated(of_library(found, sound(1)), [2, 9, 8], 30, **settings)
    assert free[0] in expected or free[0] in settings["suppress_tokens"], "it is only not the first"
    params = SamplingParams(temperature=0, max_tokens=30)
    (output,) = run(build(Example(tmp_path, found.library)), [(sound(1), params)])
    assert output.prompt_token_ids == [2, 9, 8] and output.outputs[0].token_ids == expected
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": "all"}))
    with pytest.raises(ValueError, match="suppress_tokens='all', expected a list"):
        build(Example(tmp_path, found.library))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"forced_decoder_ids": [[2, 9]]}, "forced_decoder_ids"),
        ({"forced_decoder_ids": [5]}, "a list of pairs"),
        ({"lang_to_id": ["en"]}, "lang_to_id"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(example("whisper", folder).folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=said):
        build(Example(tmp_path, None))


def test_a_language_must_be_named_where_there_are_many(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(example("whisper", folder).folder, tmp_path, dirs_exist_ok=True)
    languages = {"lang_to_id": {"<|en|>": 9, "<|de|>": 10}, "forced_decoder_ids": [[1, None], [2, 8]]}
    (tmp_path / "generation_config.json").write_text(json.dumps({**languages, "decoder_start_token_id": 2}))
    engine = build(Example(tmp_path, None))
    with pytest.raises(ValueError, match="knows 2 languages"):
        engine.add_request("wrong", sound(1), SamplingParams(max_tokens=2))


def test_tokens_alone_are_no_prompt(folder: Path) -> None:
    with pytest.raises(ValueError, match="nothing that its encoder reads"):
        build(example("t5", folder)).add_request("wrong", EngineInput([2]), SamplingParams(max_tokens=2))


def test_the_longest_input_of_an_encoder_is_part_of_the_largest_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which a GPU's memory is divided."""
    from framework.models.encoder import Encoder

    given: list[int] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, found: given.append(len(encoded := encode(self, found))) or encoded)
    monkeypatch.setattr(Cpu, "cache_bytes", lambda self, largest_step, fraction: largest_step() or 2**20)
    for kind, most in (("t5", 512), ("bart", 300), ("whisper", SECONDS * 50)):
        build(example(kind, folder), cache=CacheConfig())
        assert given.pop() == most and not given


def random_jobs(rng: random.Random, kind: str) -> list[tuple[Any, SamplingParams]]:
    jobs = []
    for index in range(rng.randint(4, 9)):
        encoded: Any = (
            sound(rng.randrange(3)) if kind == "whisper" else {"prompt_token_ids": some_tokens(rng.randint(1, 60), rng.random())}
        )
        begin = some_tokens(rng.choice([0, 0, 3, 20]), rng.random())
        temperature = rng.choice([0.0, 0.8])
        params = SamplingParams(
            temperature=temperature, n=rng.choice([1, 2]) if temperature else 1, seed=index, max_tokens=rng.randint(1, 40)
        )
        jobs.append(({"encoder_prompt": encoded, "decoder_prompt": {"prompt_token_ids": begin}} if begin else encoded, params))
    return jobs


@cache
def alone(kind: str, folder: Path) -> Engine:
    return build(example(kind, folder), {"default": "reference"})


def check_mix(kind: str, folder: Path, seed: int) -> dict[str, int]:
    """A request's tokens are the same whoever is beside it, and whatever happens to it on the way: how often what did."""
    rng = random.Random(seed)
    jobs = random_jobs(rng, kind)
    expected = [tokens(run(alone(kind, folder), [job]))[0] for job in jobs]
    size = rng.choice([2, 4, 16])
    encoded = -(-(SECONDS * 50 if kind == "whisper" else 60) // size)
    one = encoded + -(-64 // size) + 1  # with the null block
    blocks = rng.choice([one, one + 5, one + 12, max(one, 2 * encoded + 4), one + 300])
    cache = CacheConfig(block_size=size, num_blocks=blocks)
    limits = {"max_num_batched_tokens": rng.choice([8, 17, 256]), "encoder_budget": rng.choice([1, 70, 4096])}
    scheduler = SchedulerConfig(max_num_seqs=rng.choice([2, 8]), in_flight_steps=rng.choice([1, 2]), **limits)
    engine = build(example(kind, folder), {"default": "reference"}, cache=cache, scheduler=scheduler)
    assert tokens(run(engine, jobs)) == expected
    assert engine.kv_usage == 0
    stats = engine.stats()
    return {"preempted": stats.num_preemptions, "chunked": stats.num_chunked_prefills}


@pytest.mark.parametrize(("kind", "seeds"), [("t5", range(5)), ("bart", range(5)), ("whisper", range(1, 3))])
def test_mixes_change_nothing(kind: str, seeds: range, folder: Path) -> None:
    happened = [check_mix(kind, folder, seed) for seed in seeds]
    assert all(sum(each[name] for each in happened) for name in ("preempted", "chunked")), happened


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "bart", "whisper"])
def test_many_mixes_change_nothing(kind: str, mix_seed: int, folder: Path) -> None:
    """See ``--mixes``."""
    check_mix(kind, folder, mix_seed)


def test_an_encoder_runs_once_for_each_time_a_request_takes_a_seat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from framework.models.encoder import Encoder

    seen: list[int] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, given: seen.append(given.num_tokens) or encode(self, given))
    engine = build(example("t5", folder), scheduler=SchedulerConfig(max_num_seqs=8, encoder_budget=50))
    jobs = [({"prompt_token_ids": some_tokens(count)}, SamplingParams(temperature=0, max_tokens=12)) for count in (40, 30, 60, 9)]
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), prompt, params)
    before, most = 0, []
    while engine.has_unfinished():
        engine.step()
        most.append(sum(seen[before:]))
        before = len(seen)
    assert sorted(seen) == [9, 30, 40, 60] and max(most) == 60, "a budget of 50, unless one alone has more"


BAD_PROMPTS = [
    ({"decoder_prompt": "a"}, "needs 'encoder_prompt'"),
    ({"encoder_prompt": {"prompt_token_ids": []}}, "encoder_prompt is empty"),
    ({"prompt_token_ids": [5] * 600}, "encoder_prompt has 600 tokens, but the encoder reads at most 512"),
    ({"encoder_prompt": {"prompt_token_ids": [5, VOCAB]}}, "token id"),
    ({"encoder_prompt": {"prompt_token_ids": [5]}, "prompt": "a"}, "prompt beside 'encoder_prompt'"),
    ({"multi_modal_data": {"audio": None}}, "the model reads text"),
    ({"encoder_prompt": {"prompt_token_ids": [5]}, "decoder_prompt": {"prompt_token_ids": [5] * 600}}, "max_model_len"),
]


@pytest.mark.parametrize(("prompt", "said"), BAD_PROMPTS)
def test_prompts_that_cannot_be_served_are_refused(prompt: Any, said: str, folder: Path) -> None:
    engine = build(example("t5", folder))
    with pytest.raises(ValueError, match=said):
        engine.add_request("wrong", prompt, SamplingParams(max_tokens=2))
    (output,) = run(engine, [({"prompt_token_ids": [5]}, SamplingParams(max_tokens=2))])
    assert len(output.outputs[0].token_ids) == 2


BAD_SOUNDS = [
    ((np.zeros(16000 * SECONDS + 1), 16000), "5 s, but the model reads at most 4 s"),
    ((np.zeros(100), 8000), "8000 samples a second, but the model reads 16000"),
    ((np.zeros((2, 100)), 16000), "one channel"),
    ((np.full(100, np.nan), 16000), "finite"),
    ("a.wav", "audio must be"),
]


@pytest.mark.parametrize(("given", "said"), BAD_SOUNDS)
def test_sounds_that_cannot_be_heard_are_refused(given: Any, said: str, folder: Path) -> None:
    engine = build(example("whisper", folder))
    with pytest.raises(ValueError, match=said):
        engine.add_request("wrong", {"multi_modal_data": {"audio": given}}, SamplingParams(max_tokens=2))
    with pytest.raises(ValueError, match="the model listens"):
        engine.add_request("wrong", {"prompt_token_ids": [5]}, SamplingParams(max_tokens=2))


REFUSED = [
    ("cache.prefix_caching", {"cache": CacheConfig(num_blocks=20, prefix_caching=True)}),
    ("speculative_config.method", {"speculative_config": SpeculativeConfig("ngram", 2)}),
    ("lora.enabled", {"lora": LoraConfig(enabled=True)}),
    ("parallel.tp", {"parallel": ParallelConfig(tp=2)}),
    ("parallel.pp", {"parallel": ParallelConfig(pp=2)}),
    ("quant.scheme", {"quant": QuantConfig("rtn-int4", group_size=32)}),
]


@pytest.mark.parametrize(("field", "settings"), REFUSED)
def test_what_an_encoder_decoder_cannot_have_is_refused_by_name(
    field: str, settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from framework.worker import local_executor

    monkeypatch.setattr(local_executor, "load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=field):
        build(example("t5", folder), **settings)


def test_an_executor_with_workers_is_refused_by_name(folder: Path) -> None:
    config = EngineConfig(ModelConfig(str(example("t5", folder).folder), skip_tokenizer=True))
    with pytest.raises(ValueError, match=r"executor\.kind=distributed"):
        build_engine(replace(config, executor=replace(config.executor, kind="distributed")))


def test_dummy_weights() -> None:
    model = ModelConfig(
        "none", load_format="dummy", skip_tokenizer=True, architecture={"model_type": "t5", **T5, "eos_token_id": 1}
    )
    engine = build_engine(EngineConfig(model, CacheConfig(num_blocks=50)))
    (output,) = run(engine, [({"prompt_token_ids": [5, 6]}, SamplingParams(max_tokens=3, ignore_eos=True))])
    assert len(output.outputs[0].token_ids) == 3
    assert not engine.config.cache.prefix_caching
