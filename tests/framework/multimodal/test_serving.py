"""What engines do with images: encode each once, share no more than is equal, and refuse what cannot be."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from framework import LLM, SamplingParams
from framework.build import build_engine, input_processor
from framework.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from framework.models.read import read_model
from framework.outputs import RequestOutput
from framework.sampling_params import BeamSearchParams, StructuredOutputsParams

from ..engines import assert_idle, finish
from .checkpoints import KINDS, make, picture
from .harness import GREEDY


def prompt(text: str, *images: Any) -> dict[str, Any]:
    return {"prompt": text, "multi_modal_data": {"image": list(images)}}


def tokens(llm: LLM, *prompts: Any, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(list(prompts), params, use_tqdm=False)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("llava")
    make("llava", found)
    return found


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return serve(folder)


def serve(folder: Path, **given: Any) -> LLM:
    return LLM(str(folder), dtype="float32", block_size=4, num_gpu_blocks_override=300, **given)


def num_encoded(llm: LLM) -> int:
    assert llm.engine.scheduler.images is not None
    return llm.engine.scheduler.images.num_encoded


def test_one_image_in_eight_requests_is_encoded_once(folder: Path) -> None:
    llm = serve(folder, enable_prefix_caching=False)
    calls: list[Any] = []
    executor: Any = llm.engine.executor
    encode = executor._tower.encode
    executor._tower.encode = lambda inputs: calls.append(inputs) or encode(inputs)
    texts = [f"<image>{number}" for number in range(8)]
    together = tokens(llm, *(prompt(text, picture(1)) for text in texts))
    assert len(calls) == num_encoded(llm) == 1
    assert together == [tokens(llm, prompt(text, picture(1)))[0] for text in texts]
    assert len(calls) == num_encoded(llm) == 1
    tokens(llm, prompt("<image>", picture(2)))
    assert len(calls) == num_encoded(llm) == 2


def test_the_prefix_cache_tells_pixels_apart(folder: Path) -> None:
    llm = serve(folder)
    text = "abcdefgh<image> what is that"
    for image, hit in ((picture(1), 0), (picture(1), 36), (picture(2), 8), (picture(2), 36)):
        output = llm.generate(prompt(text, image), GREEDY, use_tqdm=False)[0]
        assert output.num_cached_tokens == hit, "8 tokens of text, 16 of the image, 13 of text; 4 a block, and the last is computed"
    salted = {**prompt(text, picture(1)), "cache_salt": "another"}
    assert llm.generate(salted, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_tokens_may_be_given_instead_of_text(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("see <image><image>!")
    given = {"prompt_token_ids": ids, "multi_modal_data": {"image": [picture(1), picture(2)]}}
    assert tokens(llm, given) == tokens(llm, prompt("see <image><image>!", picture(1), picture(2)))


def test_completions_and_beams_of_one_prompt_share_its_image(folder: Path) -> None:
    llm = serve(folder)
    params = SamplingParams(n=3, max_tokens=6, temperature=1.0, seed=5, ignore_eos=True)
    for text in ("look: <image>", "<image> there"):
        output = llm.generate(prompt(text, picture(3)), params, use_tqdm=False)[0]
        singles = [
            tokens(
                llm, prompt(text, picture(3)), params=SamplingParams(max_tokens=6, temperature=1.0, seed=5 + i, ignore_eos=True)
            )[0]
            for i in range(3)
        ]
        assert [completion.token_ids for completion in output.outputs] == singles
    beams = llm.beam_search(prompt("look: <image>", picture(3)), BeamSearchParams(beam_width=1, max_tokens=4, ignore_eos=True))
    best = beams[0].sequences[0].tokens
    assert best[-4:] == tokens(llm, prompt("look: <image>", picture(3)))[0]
    assert num_encoded(llm) == 1


@pytest.mark.parametrize(("name", "depth"), [("llava", 1), ("llava", 2), ("gemma3", 1)])
def test_a_tower_that_fails_ends_its_requests_and_no_others(
    name: str, depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the image alone; nor is anything kept of what it made."""
    make(name, tmp_path)
    model, scheduler = ModelConfig(str(tmp_path), dtype="float32"), SchedulerConfig(in_flight_steps=depth)
    engine = build_engine(EngineConfig(model, CacheConfig(4, num_blocks=300), scheduler))
    tower, text = cast(Any, engine.executor)._tower, f"{KINDS[name].template}x"
    encode, jobs, calls = tower.encode, ["some text", prompt(text, picture(1)), prompt(text, picture(2))], list[Any]()

    def outputs() -> list[RequestOutput]:
        for index, job in enumerate(jobs):
            engine.add_request(str(index), job, GREEDY)
        done = finish(engine)
        assert_idle(engine)
        return [done[str(index)] for index in range(len(jobs))]

    def broken(inputs: Any) -> Any:
        raise MemoryError("no room")

    for failing, said in (
        (broken, "an image was not encoded: MemoryError: no room"),
        (lambda inputs: encode(inputs)[:-1], "ValueError: the tower gives 15 embeddings of an image that has 16 placeholders"),
    ):
        calls.clear()

        def once(inputs: Any, failing: Any = failing) -> Any:
            calls.append(inputs)
            return failing(inputs) if len(calls) == 1 else encode(inputs)

        monkeypatch.setattr(tower, "encode", once)
        found, expected = outputs(), outputs()
        assert [said in str(output.error) for output in found] == [False, True, False] and len(calls) == 3
        assert not any(output.error for output in expected)
        assert [found[i].outputs[0].token_ids for i in (0, 2)] == [expected[i].outputs[0].token_ids for i in (0, 2)]
        jobs[1:] = [prompt(text, picture(number)) for number in (3, 4)]
    monkeypatch.setattr(tower, "encode", lambda inputs: encode(inputs) * float("nan"))
    jobs[1:] = [prompt(text, picture(number)) for number in (5, 6)]
    assert [output.outputs[0].finish_reason for output in outputs()] == ["length", "error", "error"]
    engine.shutdown()


def test_without_chunks_prompts_with_images_wait_for_a_step_that_takes_them_whole(folder: Path) -> None:
    """Of one that leaves while it waits no image is kept room for; two images may be more than a step encodes otherwise."""
    model, cache = ModelConfig(str(folder), dtype="float32"), CacheConfig(4, num_blocks=300)
    limits = {"max_num_batched_tokens": 160, "encoder_budget": 1, "encoder_cache": 32}
    engine = build_engine(EngineConfig(model, cache, SchedulerConfig(chunked_prefill=False, **limits)))
    engine.add_request("long", "x" * 150, GREEDY)
    engine.add_request("leaves", prompt("abc<image>", picture(1)), GREEDY)
    engine.step()
    engine.abort(["leaves"])
    engine.add_request("two", prompt("<image>a<image>", picture(2), picture(3)), GREEDY)
    with pytest.raises(ValueError, match=r"48 embeddings.*but 32 are kept \(scheduler.encoder_cache\)"):
        engine.add_request("three", prompt("<image>" * 3, *map(picture, range(3))), GREEDY)
    done = finish(engine)
    assert done.keys() == {"long", "two"} and not any(output.error for output in done.values())
    engine.shutdown()


def test_conversations_have_images_and_what_users_spell_is_text(llm: LLM) -> None:
    template = "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    template += "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"

    def asked(*parts: Any) -> Any:
        return llm.chat([{"role": "user", "content": list(parts)}], GREEDY, use_tqdm=False, chat_template=template)[0]

    image, text = {"type": "image", "image": picture(1)}, {"type": "text", "text": "what?"}
    found = asked(image, text)
    expected = llm.generate(prompt("<image>what?", picture(1)), GREEDY, use_tqdm=False)[0]
    assert (found.prompt_token_ids, found.outputs[0].token_ids) == (expected.prompt_token_ids, expected.outputs[0].token_ids)
    assert asked({"type": "image_url", "image_url": {"url": url(picture(1))}}, text).prompt_token_ids == found.prompt_token_ids
    spelled = asked({"type": "text", "text": "an <image> is "}, image)
    ids = spelled.prompt_token_ids
    assert ids is not None and spelled.prompt == "an <image> is <image>"
    assert llm.get_tokenizer().decode(ids[:-16]) == "an <image> is " and ids.count(258) == 16
    alone = llm.chat([{"role": "user", "content": "an <image>"}], GREEDY, use_tqdm=False, chat_template=template)[0]
    assert alone.prompt_token_ids is not None and 258 not in alone.prompt_token_ids


OTHER_MEDIA: list[dict[str, Any]] = [
    {"type": "video", "video": "a.mp4"},
    {"video": "a.mp4"},
    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}},
    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
]


def test_conversations_have_no_other_media(llm: LLM) -> None:
    """Nor with a template that would write a placeholder, as that of Qwen2-VL does."""
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] or '<|video_pad|>' }}{% endfor %}{% endfor %}"
    for model in (llm, LLM("tiny")):
        for part in OTHER_MEDIA:
            with pytest.raises(ValueError, match="text or an image, not video or audio; found"):
                model.chat([{"role": "user", "content": [part]}], GREEDY, use_tqdm=False, chat_template=template)
        found = model.chat([{"role": "user", "content": [{"type": "text", "text": "a"}]}], GREEDY, chat_template=template)
        assert len(found[0].outputs[0].token_ids) == 4


def url(image: Image.Image, kind: str = "PNG", **given: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **given)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


class Wide(Image.Image):
    """As large as its header says, of which no pixel was read."""

    @property
    def size(self) -> tuple[int, int]:
        return 10_000, 9_000


def truncated() -> Image.Image:
    buffer = io.BytesIO()
    picture(1, 300, 300).save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()[:2000]))


def animated() -> Image.Image:
    buffer = io.BytesIO()
    picture(1).save(buffer, "GIF", save_all=True, append_images=[picture(2)])
    return Image.open(buffer)


def test_colors_are_told_apart_however_they_are_stored(llm: LLM) -> None:
    """Of 16 bits a channel those that a screen shows."""
    grey = np.random.default_rng(1).integers(0, 256, (30, 40), dtype=np.uint8)
    wide = Image.fromarray(grey.astype(np.uint16) << 8 | 37)
    assert wide.mode == "I;16" and tokens(llm, prompt("<image>", wide)) == tokens(llm, prompt("<image>", Image.fromarray(grey)))
    for mode in ("RGBA", "CMYK"):
        assert tokens(llm, prompt("<image>", picture(1).convert(mode))) == tokens(llm, prompt("<image>", picture(1)))
    for mode in ("1", "L", "LA", "P", "YCbCr"):
        assert tokens(llm, prompt("<image>", picture(1).convert(mode)))
    for size in ((1, 1), (3, 3), (200, 1), (3, 600)):
        assert tokens(llm, prompt("<image>", picture(1, *size)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (prompt("<image>", Image.new("F", (30, 40))), "an image of mode 'F' cannot work"),
        (prompt("<image>", Image.new("I", (30, 40))), "an image of mode 'I' cannot work"),
        (prompt("<image>", None), "must be a PIL image; found NoneType"),
        (prompt("<image><image>", picture(1)), "2 times '<image>'.*1 images"),
        (prompt("no placeholder", picture(1)), "0 times '<image>'.*1 images"),
        ("one <image>", "1 times '<image>'.*0 images"),
        ({"prompt_token_ids": [5, 258]}, "1 times '<image>'.*0 images"),
        ({"prompt_token_ids": [5], "multi_modal_data": {"image": picture(1)}}, "0 times '<image>'.*1 images"),
        (prompt("<image>", "a path"), "must be a PIL image; found str"),
        (prompt("<image>", np.zeros((3, 3, 3))), "must be a PIL image; found ndarray"),
        ({"prompt": "<image>", "multi_modal_data": {"video": picture(1)}}, "'multi_modal_data' must be"),
        ({"prompt": "<image>", "multi_modal_data": picture(1)}, "'multi_modal_data' must be"),
        (prompt("<image>", Wide()), "10000 x 9000 cannot work: it must have from 1 to 89478485 pixels"),
        (prompt("<image>", picture(1, 1000, 3)), "one side may be 200 times as long"),
        (prompt("<image>", truncated()), "cannot be read"),
        (prompt("<image>", animated()), "2 pictures cannot work"),
        (prompt("<image>" * 20, *[picture(1)] * 20), "320 tokens.*at most 300"),
        ({**prompt("<image>", picture(1)), "mm_processor_kwargs": {}}, "'mm_processor_kwargs' is not available"),
    ],
)
def test_what_cannot_be_is_refused_and_the_engine_goes_on(given: Any, message: str, folder: Path) -> None:
    llm = small(folder)
    with pytest.raises(ValueError, match=message):
        llm.generate(given, GREEDY, use_tqdm=False)
    assert not llm.engine.has_unfinished()
    assert tokens(llm, prompt("<image>", picture(1)))


_SMALL: dict[Path, LLM] = {}


def small(folder: Path) -> LLM:
    if folder not in _SMALL:
        _SMALL[folder] = serve(folder, max_model_len=300)
    return _SMALL[folder]


@pytest.mark.parametrize(("given", "message"), [({"limit_mm_per_prompt": {"image": 0}}, "model.limit_mm_per_prompt.image=0")])
def test_engines_that_take_no_images_serve_text_and_say_why(given: dict[str, Any], message: str, folder: Path, llm: LLM) -> None:
    other = serve(folder, **given)
    assert tokens(other, "text alone") == tokens(llm, "text alone")
    with pytest.raises(ValueError, match=f"this engine takes none: {message}"):
        tokens(other, prompt("<image>", picture(1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel.pp": 2, "executor.kind": "distributed"}, "parallel.pp=2"),
        ({"parallel.ep": 2, "parallel.dp": 2, "executor.kind": "distributed"}, "parallel.ep=2 over parallel.dp=2"),
        ({"speculative_config.method": "eagle", "speculative_config.num_speculative_tokens": 2}, "speculative_config.method=eagle"),
        ({"model.skip_tokenizer": True}, "model.skip_tokenizer"),
    ],
)
def test_other_engines_name_what_is_in_the_way(change: dict[str, Any], message: str, folder: Path) -> None:
    config = EngineConfig(ModelConfig(str(folder)))
    for key, value in change.items():
        part, name = key.split(".")
        setattr(getattr(config, part), name, value)
    inputs = input_processor(config.model, read_model(config.model), config)
    with pytest.raises(ValueError, match=message):
        inputs.prompt({"prompt_token_ids": [1], "multi_modal_data": {"image": picture(1)}})


def test_no_more_images_than_the_limit(folder: Path) -> None:
    llm = serve(folder, limit_mm_per_prompt={"image": 1})
    assert tokens(llm, prompt("<image>", picture(1)))
    with pytest.raises(ValueError, match="the prompt has 2 images, but this engine takes 1 of one prompt"):
        tokens(llm, prompt("<image><image>", picture(1), picture(2)))


@pytest.mark.parametrize(
    ("limit", "message"), [({"image": -1}, "limit_mm_per_prompt.image=-1"), ({"video": 1}, "limit_mm_per_prompt.video=1")]
)
def test_limits_that_cannot_be_are_refused(limit: dict[str, int], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        serve(folder, limit_mm_per_prompt=limit)


def test_images_are_counted(folder: Path) -> None:
    llm = serve(folder, enable_prefix_caching=False)
    for number in (1, 2, 1, 1):
        tokens(llm, prompt("<image>", picture(number)))
    found: dict[str, Any] = {metric.name: metric for metric in llm.get_metrics()}
    names = ("vllm:mm_cache_queries", "vllm:mm_cache_hits", "kernelswap:images_encoded")
    assert [found[name].value for name in names] == [4, 2, 2]


def test_a_folder_without_a_processor_is_refused_by_name(tmp_path: Path) -> None:
    make("llava", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    llm = serve(tmp_path)
    assert tokens(llm, "text alone")
    with pytest.raises(ValueError, match="the model cannot take images: of the processor in"):
        tokens(llm, prompt("<image>", picture(1)))


def test_a_tokenizer_without_placeholders_is_refused_by_name(tmp_path: Path) -> None:
    make("llava", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_token_index": 310}))
    llm = serve(tmp_path)
    assert tokens(llm, "text alone")
    with pytest.raises(ValueError, match="the tokenizer has no token 310"):
        tokens(llm, prompt("<image>", picture(1)))


@pytest.mark.parametrize(
    "given",
    [
        {"quantization": "int8"},
        {"kv_cache_dtype": "int8"},
        {"max_num_seqs": 1, "enable_chunked_prefill": False},
        {"kernels": {"default": "reference"}},
        {"enforce_eager": True},
    ],
)
def test_images_go_with_other_features(given: dict[str, Any], folder: Path) -> None:
    """What an image does does not depend on who else is there, whatever is set."""
    llm = serve(folder, **given)
    jobs = [prompt(f"{text}<image>", picture(number)) for number, text in enumerate(("a", "bcd", "ef"))]
    together = tokens(llm, *jobs)
    llm.reset_prefix_cache()
    assert together == [tokens(llm, job)[0] for job in jobs] and len({tuple(found) for found in together}) == 3


def test_grammars_hold_behind_images(llm: LLM) -> None:
    params = SamplingParams(max_tokens=9, temperature=0, structured_outputs=StructuredOutputsParams(choice=["yes", "no"]))
    outputs = llm.generate([prompt("<image>?", picture(number)) for number in range(3)], params, use_tqdm=False)
    assert all(output.outputs[0].text in ("yes", "no") for output in outputs)


def test_models_that_read_images_through_the_library_alone_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="is served by the native decoder alone"):
        read_model(ModelConfig(str(folder), backend="transformers"))


def test_dummy_weights_need_no_checkpoint(folder: Path) -> None:
    found = tokens(LLM(str(folder), dtype="float32", load_format="dummy"), prompt("<image>x", picture(1)))
    assert len(found[0]) == 4
