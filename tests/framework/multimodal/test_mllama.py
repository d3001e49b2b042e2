"""Llama 3.2 with images, to which layers of its decoder attend, against transformers on a tiny random checkpoint."""

from __future__ import annotations

import base64
import io
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil, get_all_supported_aspect_ratios
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from framework import LLM, BeamSearchParams, EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ExecutorConfig, GraphConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.engine.encoding import ImageViews, View
from framework.engine.engine import Engine
from framework.models.image_encoder import ImageEncoder
from framework.models.vision import tile_grids
from framework.multimodal.items import ImageItem
from framework.outputs import RequestOutput
from framework.worker.decode_graphs import DecodeGraphs
from framework.worker.devices import Cpu
from framework.worker.encoding import _places

from ..engines import finish
from .checkpoints import MLLAMA, make, picture, tokenizer

VOCAB, IMAGE = 256, 258
"""The token of an image has no logit."""
KERNELS: list[dict[str, str]] = [
    {},
    {"default": "reference"},
    {"paged_attention_prefill": "torch", "paged_attention_decode": "torch"},
]


@dataclass
class Example:
    folder: Path
    library: Any

    def inputs(self, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
        """As the library's processor makes them of tokens."""
        processor = MllamaImageProcessorPil(**{name: value for name, value in MLLAMA.preprocessor.items() if "type" not in name})
        found = processor([images], return_tensors="pt")
        masks = [get_cross_attention_token_mask(ids, IMAGE)]
        mask = convert_sparse_cross_attention_mask_to_dense(masks, found.pop("num_tiles"), 4, len(ids))
        return {"input_ids": torch.tensor([ids]), "cross_attention_mask": torch.from_numpy(mask), **found}

    def generated(self, ids: list[int], images: list[Image.Image], count: int) -> list[int]:
        """Greedily."""
        given: Any = self.inputs(ids, images) if images else {"input_ids": torch.tensor([ids])}
        given["attention_mask"] = torch.ones(1, len(ids), dtype=torch.int64)
        return self.library.generate(**given, max_new_tokens=count, do_sample=False)[0, len(ids) :].tolist()


def made(folder: Path, scale: float) -> Example:
    """scale: of what the decoder's layers do, without which answers are dull."""
    library = make("mllama", folder, seed=1)
    for name, weight in library.named_parameters():
        if weight.dim() > 1 and "language_model.layers" in name:
            weight.data *= scale
    library.generation_config.eos_token_id = None
    library.save_pretrained(folder)
    for layer in library.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            _blind_tokens_add_nothing(layer)
    return Example(folder, library)


def _blind_tokens_add_nothing(layer: Any) -> None:
    """In the library tokens before the first image attend to all that comes later, padding and all, and add that. In the code that
    the weights were trained with, and in vLLM, they add nothing of it, as in the library they add nothing of the MLP behind it."""
    seen: list[torch.Tensor | None] = []

    def remember(layer: Any, args: Any, given: dict[str, Any]) -> None:
        seen[:] = [given["full_text_row_masked_out_mask"]]

    def cut(attention: Any, args: Any, out: Any) -> Any:
        return out if seen[0] is None else (out[0] * seen[0][:, 0], *out[1:])

    layer.register_forward_pre_hook(remember, with_kwargs=True)
    layer.cross_attn.register_forward_hook(cut)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return made(tmp_path_factory.mktemp("mllama"), 2.0)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Of many tokens; float32 is too short to tell its logits to the fourth digit."""
    return made(tmp_path_factory.mktemp("lively"), 6.0)


PROMPTS: dict[str, tuple[str, list[Image.Image]]] = {
    "start": ("{}Hello there, a long line of text", [picture(1)]),
    "middle": ("Hi {} what is that, said by whom", [picture(2, 60, 25)]),
    "end": ("Look at what I have got for you: {}", [picture(3, 25, 60)]),
    "side by side": ("See {}{}two of them", [picture(4), picture(5, 33, 64)]),
    "apart": ("{}one, then {}another, {}{}the rest", [picture(n, 20 + 9 * n, 40) for n in range(4)]),
    "text": ("nothing to be seen here, only text", []),
}


def build(found: Example, kernels: dict[str, str] | None = None, **settings: Any) -> Engine:
    books = settings.pop("cache", CacheConfig(block_size=4, num_blocks=400))
    books.check_invariants = True
    scheduler = settings.pop("scheduler", SchedulerConfig(max_num_seqs=8))
    model = ModelConfig(str(found.folder), dtype="float32", max_logprobs=-1, **settings.pop("model", {}))
    return build_engine(EngineConfig(model, books, scheduler, kernels=kernels or {}, num_threads=1, **settings))


def given(name: str) -> dict[str, Any]:
    text, images = PROMPTS[name]
    return {"prompt": text.format(*["<|image|>"] * len(images)), "multi_modal_data": {"image": images}}


def run(engine: Engine, jobs: list[tuple[Any, SamplingParams]]) -> list[RequestOutput]:
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), prompt, params)
    done = finish(engine)
    assert not any(output.error for output in done.values())
    return [done[str(index)] for index in range(len(jobs))]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(completion.token_ids) for completion in output.outputs] for output in outputs]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("chunk", [512, 16])
def test_logits_are_those_of_transformers(kernels: dict[str, str], chunk: int, example: Example) -> None:
    """At every position, of requests with images and without beside each other, whole and in chunks."""
    engine = build(example, kernels, scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=chunk))
    params = SamplingParams(temperature=0, max_tokens=5, prompt_logprobs=-1, logprobs=-1, ignore_eos=True)
    outputs = run(engine, [(given(name), params) for name in PROMPTS])
    assert (engine.stats().num_chunked_prefills > 0) == (chunk == 16)
    for (_, images), output in zip(PROMPTS.values(), outputs):
        assert output.prompt_token_ids is not None and output.prompt_logprobs is not None
        assert output.outputs[0].logprobs is not None
        ids, new = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
        library = example.inputs(ids, images) if images else {}
        if images:  # the tokens that follow see what the last of the prompt sees
            mask = library["cross_attention_mask"]
            library["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(new), -1, -1)], 1)
        with torch.inference_mode():
            logits = example.library(**{**library, "input_ids": torch.tensor([ids + new])}).logits[0, :-1]
        expected = logits.double().log_softmax(-1)
        rows = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        assert len(rows) == len(expected)
        for row, wanted, token in zip(rows, expected, [*ids[1:], *new]):
            assert row is not None
            assert token != IMAGE or row[token].logprob == -float("inf")
            got = torch.tensor([row[token].logprob for token in range(VOCAB)], dtype=torch.float64)
            assert (got - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("begin", ["", "\u0100", "so \u0100"])
def test_tokens_of_a_prompt_are_those_of_the_librarys_processor(begin: str, example: Example) -> None:
    """Which puts what begins a text behind the images at its start, unless the text has it."""
    processor, inputs = AutoProcessor.from_pretrained(example.folder), build(example).inputs
    for name, (_, images) in PROMPTS.items():
        if images:
            text = begin + given(name)["prompt"]
            expected = processor(images=[images], text=text, add_special_tokens=False)["input_ids"][0]
            found = inputs.prompt({"prompt": text, "multi_modal_data": {"image": images}})
            assert found.token_ids == expected and expected.count(inputs.tokenizer.bos_token_id) == 1
            assert [expected[image.start] for image in found.images] == [IMAGE] * len(images)


def test_greedy_tokens_are_those_of_generate(lively: Example) -> None:
    engine, params = build(lively), SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    outputs = run(engine, [(given(name), params) for name in PROMPTS])
    found = [list(output.outputs[0].token_ids) for output in outputs]
    expected = [lively.generated(list(o.prompt_token_ids or ()), images, 64) for o, (_, images) in zip(outputs, PROMPTS.values())]
    assert all(len(set(answer)) > 20 for answer in expected), "answers that repeat themselves show little"
    assert found == expected


def test_only_tokens_before_images_differ_from_the_library_as_it_is(example: Example) -> None:
    """Of prompts that begin with an image the library says the same without the hooks."""
    plain = type(example.library).from_pretrained(example.folder).eval()
    for name, is_same in (("start", True), ("apart", True), ("text", True), ("middle", False)):
        text, images = PROMPTS[name]
        ids = tokenizer(MLLAMA.tokens).encode(given(name)["prompt"])
        found = example.inputs(ids, images) if images else {"input_ids": torch.tensor([ids])}
        with torch.inference_mode():
            assert torch.equal(plain(**found).logits, example.library(**found).logits) == is_same, text


def test_an_image_matters_from_where_it_stands(example: Example) -> None:
    engine, params = build(example), SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompt = "before <|image|>behind"
    outputs = run(engine, [({"prompt": prompt, "multi_modal_data": {"image": picture(seed)}}, params) for seed in (1, 2)])
    first, second = (
        [next(iter(row.values())).logprob for row in output.prompt_logprobs[1:] if row]
        for output in outputs
        if output.prompt_logprobs
    )
    assert first[:8] == second[:8] and all(a != b for a, b in zip(first[8:], second[8:]))


def test_views_are_the_masks_of_the_library() -> None:
    """Of random prompts: which tiles a token sees, and that each vector has a place of its own."""
    rng = random.Random(0)
    for _ in range(200):
        count, block_size, tile = rng.randint(1, 30), rng.choice([1, 4, 16]), rng.randint(1, 9)
        ids = [IMAGE if rng.random() < 0.3 else 1 for _ in range(count)]
        starts = [place for place, token in enumerate(ids) if token == IMAGE]
        tiles = [rng.randint(1, 4) for _ in starts]
        items = [ImageItem(start, 1, b"", {"aspect_ratio_mask": np.arange(4)[None, None] < n}) for start, n in zip(starts, tiles)]
        found = ImageViews(tile, block_size).encoder_input(items)
        if found is None:
            assert not starts
            continue
        mask = convert_sparse_cross_attention_mask_to_dense([get_cross_attention_token_mask(ids, IMAGE)], [tiles], 4, count)[0]
        places = _places(found)
        assert len(set(places.tolist())) == len(places) == tile * sum(tiles) and places.max() < found.num_tokens
        whose = np.repeat(np.repeat(np.arange(len(tiles)), tiles), tile)  # image of each vector
        assert found.num_seen == tile * int(mask[-1].sum())
        for token in range(count):
            view = next((v for v in found.views[::-1] if v.first <= token), View(0, 0, 0))
            assert view.start % block_size == 0
            seen = whose[(places >= view.start) & (places < view.start + view.length)]
            assert seen.tolist() == np.repeat(np.arange(len(tiles)), tile * mask[token].sum(-1)).tolist()


def test_decodes_are_replayed(lively: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, replayed = DecodeGraphs.run, list[int]()
    monkeypatch.setattr(DecodeGraphs, "run", lambda self, rows: replayed.append(len(rows.seats)) or replay(self, rows))
    jobs = [(given(name), SamplingParams(temperature=0, max_tokens=4 + 3 * i)) for i, name in enumerate(PROMPTS)]
    settings: dict[str, Any] = {"scheduler": SchedulerConfig(max_num_seqs=3)}
    expected = tokens(run(build(lively, graphs=GraphConfig(enabled=False), **settings), jobs))
    assert not replayed
    assert tokens(run(build(lively, **settings), jobs)) == expected
    assert set(replayed) == {1, 2, 3}


def test_one_image_in_eight_requests_is_encoded_once(lively: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step and later, while what came of it is kept; the keys and values of a request are its own."""
    encode, calls, params = ImageEncoder.encode, list[Any](), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    monkeypatch.setattr(ImageEncoder, "encode", lambda self, inputs: calls.append(inputs) or encode(self, inputs))
    jobs = [({"prompt": f"{n}<|image|>see", "multi_modal_data": {"image": picture(1, 60, 25)}}, params) for n in range(8)]
    other = {"prompt": "<|image|><|image|>!", "multi_modal_data": {"image": [picture(2), picture(2)]}}, params
    engine = build(lively)
    found = tokens(run(engine, jobs))
    assert len(calls) == 1 and len({tuple(answers[0]) for answers in found}) > 1
    assert found == [tokens(run(engine, [job]))[0] for job in jobs] and len(calls) == 1
    pair = tokens(run(engine, [other]))
    assert len(calls) == 2, "one image twice"
    stats = engine.stats()
    assert (stats.num_image_queries, stats.num_image_hits, stats.num_images_encoded) == (18, 16, 2)
    calls.clear()
    forgetful = build(lively, scheduler=SchedulerConfig(max_num_seqs=2, encoder_cache=16))  # less than a tile
    assert tokens(run(forgetful, [*jobs, other])) == [*found, *pair]
    assert len(calls) == forgetful.stats().num_images_encoded >= 4 + 1
    check_books(forgetful)


def check_books(engine: Engine) -> None:
    """What is kept on the device is what the books say, and what the next step forgets."""
    kept, books = cast(Any, engine.executor)._runner._encoder._encoder._kept, cast(Any, engine.scheduler).images
    assert set(kept) == {*books._kept, *books._forgotten}
    assert {key: len(kept[key]) for key in books._kept} == books._kept and sum(books._kept.values()) <= books._capacity


def random_jobs(rng: random.Random) -> list[tuple[Any, SamplingParams]]:
    jobs = []
    for seed in range(7):
        text, images = "", []
        for _ in range(rng.randrange(3)):
            text += "what is " * rng.randrange(2) + "<|image|>"
            images.append(picture(name := rng.randrange(5), 24 + 20 * (name % 3), 32))
        text += "abcdefghijklmno"[: rng.randrange(not images, 15)]
        temperature = rng.choice([0.0, 0.9])
        more = {"n": rng.choice([1, 2]) if temperature else 1, "repetition_penalty": rng.choice([1.0, 1.3])}
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=rng.randint(1, 20), ignore_eos=True, **more)
        jobs.append(({"prompt": text, "multi_modal_data": {"image": images}}, params))
    return jobs


@cache
def alone(folder: Path) -> Engine:
    return build(Example(folder, None), {"default": "reference"})


def check_mix(found: Example, seed: int) -> dict[str, int]:
    """A request's tokens are the same whoever is beside it, and whatever happens to it on the way: how often what did."""
    rng = random.Random(seed)
    jobs = random_jobs(rng)
    expected = [tokens(run(alone(found.folder), [job]))[0] for job in jobs]
    size = rng.choice([2, 4, 16])
    one = 2 * -(-68 // size) + -(-56 // size) + 1  # with the null block
    settings: dict[str, Any] = {
        "cache": CacheConfig(block_size=size, num_blocks=one + rng.choice([0, 3, 10, 300])),
        "scheduler": SchedulerConfig(
            max_num_seqs=rng.randint(1, 6), max_num_batched_tokens=rng.choice([6, 9, 40, 512]), in_flight_steps=rng.randint(1, 2)
        ),
    }
    settings["scheduler"].encoder_cache = rng.choice([1, 40, 100, 16384])
    settings["scheduler"].encoder_budget = rng.choice([1, 70, 4096])
    engine = build(found, {"default": "reference"}, **settings)
    assert tokens(run(engine, jobs)) == expected
    assert tokens(run(engine, jobs[::-1])) == expected[::-1]
    assert engine.manager.pool.num_free == engine.manager.pool.num_blocks - 1
    stats = engine.stats()
    missed = stats.num_image_queries - stats.num_image_hits
    assert missed == stats.num_images_encoded, "each is either there or encoded"
    check_books(engine)
    return {
        "preemptions": stats.num_preemptions,
        "chunks": stats.num_chunked_prefills,
        "hits": stats.num_image_hits,
        "evictions": missed - len({image.key for job in jobs for image in engine.inputs.prompt(job[0]).images}),
    }


def test_no_mixture_changes_what_is_said(mix_seed: int, lively: Example) -> None:
    """See ``--mixes``."""
    check_mix(lively, mix_seed)


def test_the_mixtures_meet_what_they_are_about(lively: Example) -> None:
    happened = [check_mix(lively, seed) for seed in (2, 4, 8)]
    totals = {key: sum(one[key] for one in happened) for key in happened[0]}
    assert all(totals.values()), totals


def test_beams_see_images(lively: Example) -> None:
    """With one beam, the likeliest token at a time."""
    llm = LLM(str(lively.folder), dtype="float32", block_size=4, num_gpu_blocks_override=200)
    (found,) = llm.beam_search([given("middle")], BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))
    (output,) = llm.generate(given("middle"), SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)
    assert output.prompt_token_ids is not None
    assert found.sequences[0].tokens == [*output.prompt_token_ids, *output.outputs[0].token_ids]
    llm.shutdown()


def test_images_in_messages(lively: Example) -> None:
    engine = build(lively)
    data = io.BytesIO()
    picture(2, 60, 25).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    parts = [{"type": "text", "text": "Hi <|image|>"}, {"type": "image_url", "image_url": {"url": url}}]
    engine.inputs.tokenizer.chat_template = template
    found = engine.inputs.chat([{"role": "user", "content": parts}])
    assert found.token_ids.count(IMAGE) == 1, "what a user spells is no image"
    assert len(found.images) == 1 and found.text == "Hi <|image|><|image|>"
    (output,) = run(engine, [(found, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))])
    assert list(output.outputs[0].token_ids) == lively.generated(found.token_ids, [picture(2, 60, 25)], 8)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"prompt": "<|image|>", "multi_modal_data": {"image": []}}, "1 times '<.image.>'.* 0 images"),
        ({"prompt": "none", "multi_modal_data": {"image": picture(1)}}, "0 times.* 1 images"),
        ({"prompt_token_ids": [1, IMAGE, IMAGE], "multi_modal_data": {"image": picture(1)}}, "2 times.* 1 images"),
        ({"prompt_token_ids": [1, IMAGE + 1]}, "token id 259"),
        ({"prompt": "<|image|>" * 5, "multi_modal_data": {"image": [picture(1)] * 5}}, "5 images, but this engine takes 4"),
        ({"prompt": "<|image|>", "multi_modal_data": {"image": "a.png"}}, "must be a PIL image"),
        ({"prompt": "<|image|>", "multi_modal_data": {"image": Image.new("1", (100_000, 1_000))}}, "must have from 1 to"),
        ({"prompt": "<|image|>", "multi_modal_data": {"image": picture(1, 1000, 2)}}, "times as long"),
        ({"prompt": "<|image|>", "multi_modal_data": {"video": picture(1)}}, "must be {'image'"),
        ({"prompt": "<|image|>" + "a" * 400, "multi_modal_data": {"image": picture(1)}}, "402 tokens.*model.max_model_len"),
        ({"prompt": "<|image|>" * 4, "multi_modal_data": {"image": [picture(1, 60, 60)] * 4}}, "KV blocks of 4 tokens"),
    ],
)
def test_bad_input_is_refused_and_the_engine_goes_on(prompt: Any, said: str, lively: Example) -> None:
    cache = CacheConfig(block_size=4, num_blocks=60)
    engine = build(lively, cache=cache, model={"max_model_len": 300})
    with pytest.raises(ValueError, match=said):
        engine.add_request("wrong", prompt, SamplingParams(max_tokens=2))
    (output,) = run(engine, [(given("start"), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))])
    assert output.prompt_token_ids is not None
    assert list(output.outputs[0].token_ids) == lively.generated(list(output.prompt_token_ids), PROMPTS["start"][1], 4)


def test_truncated_files_are_refused(lively: Example) -> None:
    data = io.BytesIO()
    picture(1).save(data, "PNG")
    cut = Image.open(io.BytesIO(data.getvalue()[:1000]))
    with pytest.raises(ValueError, match="cannot be read"):
        build(lively).add_request(
            "wrong", {"prompt": "<|image|>", "multi_modal_data": {"image": cut}}, SamplingParams(max_tokens=2)
        )


@pytest.mark.parametrize("depth", [1, 2])
def test_an_encoder_that_fails_ends_its_request_and_no_others(depth: int, lively: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=40, in_flight_steps=depth, encoder_cache=1)
    engine = build(lively, scheduler=scheduler)
    names, params = ("start", "text", "middle"), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    expected, encode = tokens(run(engine, [(given(name), params) for name in names])), ImageEncoder.encode
    broken = engine.inputs.prompt(given("middle")).images[0].inputs["pixel_values"]

    def failing(self: ImageEncoder, inputs: Any) -> torch.Tensor:
        if np.array_equal(inputs["pixel_values"], broken):
            raise MemoryError("no room")
        return encode(self, inputs)

    monkeypatch.setattr(ImageEncoder, "encode", failing)
    for name in names:
        engine.add_request(name, given(name), params)
    done = finish(engine)
    assert [done[name].error for name in ("start", "text")] == [None, None]
    assert "an encoder failed: MemoryError: no room" in str(done["middle"].error)
    assert tokens([done["start"], done["text"]]) == expected[:2]
    monkeypatch.undo()
    assert tokens(run(engine, [(given(name), params) for name in names])) == expected
    assert engine.manager.pool.num_free == engine.manager.pool.num_blocks - 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 0}, "vision_config.patch_size=0, expected a positive"),
        ({"image_size": -28}, "vision_config.image_size=-28, expected a positive"),
        (
            {"intermediate_layers_indices": [0, 4]},
            r"vision_config.intermediate_layers_indices=\[0, 4\], expected numbers from 0 to",
        ),
        (
            {"supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]},
            r"supported_aspect_ratios=\[\[1, 1\], \[1, 2\], \[2, 1\]\], but .* max_num_tiles=4 so: \[\[1, 1\], \[1, 2\], \[1, 3\]",
        ),
        ({"hidden_act": "none"}, "transformers .* refuses its config.json .*'none'"),
    ],
)
def test_towers_that_cannot_be_are_refused(change: dict[str, Any], said: str, lively: Example) -> None:
    tower = lively.library.config.vision_config.to_dict()
    with pytest.raises(ValueError, match=said):
        build(lively, model={"architecture": {"vision_config": {**tower, **change}}})


def test_grids_are_numbered_as_the_library_does_it() -> None:
    for most in range(1, 20):
        assert list(tile_grids(most)) == get_all_supported_aspect_ratios(most)


@pytest.mark.parametrize("change", [{"max_image_tiles": 3}, {"size": {"height": 56, "width": 56}}])
def test_a_processor_of_another_tower_is_refused(change: dict[str, Any], lively: Example, tmp_path: Path) -> None:
    for path in lively.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**MLLAMA.preprocessor, **change}))
    engine = build(Example(tmp_path, None))
    with pytest.raises(ValueError, match=r"the model cannot take images: .* but the tower takes 4 of 28 x 28"):
        engine.add_request("wrong", given("start"), SamplingParams(max_tokens=2))
    run(engine, [("text alone", SamplingParams(max_tokens=2))])


def test_limits_on_images(lively: Example) -> None:
    prompt, params = given("side by side"), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with pytest.raises(ValueError, match=r"2 images, but this engine takes 1.*limit_mm_per_prompt"):
        build(lively, model={"limit_mm_per_prompt": {"image": 1}}).add_request("wrong", prompt, params)
    engine = build(lively, model={"limit_mm_per_prompt": {"image": 0}})
    with pytest.raises(ValueError, match="allows none"):
        engine.add_request("wrong", prompt, params)
    (output,) = run(engine, [("text alone", params)])
    assert output.prompt_token_ids is not None
    assert list(output.outputs[0].token_ids) == lively.generated(list(output.prompt_token_ids), [], 4)
    assert engine.executor.weight_bytes < 0.8 * build(lively).executor.weight_bytes, "the tower is not loaded"


def test_the_text_model_alone(lively: Example, tmp_path: Path) -> None:
    """Its layers that attend to images pass on what they get."""
    from transformers import MllamaForCausalLM

    text = MllamaForCausalLM(lively.library.config.text_config).eval()
    text.model.load_state_dict(lively.library.model.language_model.state_dict())
    text.lm_head.load_state_dict(lively.library.lm_head.state_dict())
    text.save_pretrained(tmp_path)
    tokenizer(MLLAMA.tokens).save_pretrained(tmp_path)
    (output,) = run(build(Example(tmp_path, None)), [("text alone", SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))])
    assert output.prompt_token_ids is not None
    assert list(output.outputs[0].token_ids) == lively.generated(list(output.prompt_token_ids), [], 8)


def test_the_largest_image_is_part_of_the_largest_step(lively: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which a GPU's memory is divided; and weights are counted before they are loaded."""
    encode, given = ImageEncoder.encode, list[int]()
    monkeypatch.setattr(ImageEncoder, "encode", lambda self, inputs: given.append(len(found := encode(self, inputs))) or found)
    monkeypatch.setattr(Cpu, "cache_bytes", lambda self, largest_step, fraction: largest_step() or 2**22)
    executor = build(lively, cache=CacheConfig(), scheduler=SchedulerConfig(max_num_seqs=8, encoder_cache=8192)).executor
    assert given == [4 * 17]
    with pytest.raises(ValueError, match="budget of 0 bytes"):  # 16384 vectors of 64 numbers, which images are to have
        build(lively, cache=CacheConfig())
    assert executor.nominal_weight_bytes <= executor.weight_bytes < 1.3 * executor.nominal_weight_bytes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": {"runner": "pooling"}}, "cannot pool: its layers attend to images"),
        ({"model": {"architecture": {"tie_word_embeddings": True}}}, "rows without a logit"),
        ({"cache": CacheConfig(num_blocks=100, prefix_caching=True)}, "cache.prefix_caching=true cannot work: layers of"),
        (
            {"executor": ExecutorConfig("distributed"), "parallel": ParallelConfig(tp=2, backend="threads")},
            "parallel.tp=2, pp=1, ep=1 cannot work",
        ),
        ({"model": {"backend": "transformers"}}, "served by the native decoder alone"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], said: str, lively: Example) -> None:
    with pytest.raises(ValueError, match=said):
        build(lively, **settings)
