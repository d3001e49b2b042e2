"""CLIP and SigLIP: texts and images as the library embeds them, and inputs that somebody made to do harm."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.image_utils import load_image

from framework import LLM, EngineConfig, PoolingParams, SamplingParams
from framework.config import ModelConfig
from framework.engine.images import image_from_url

from .checkpoints import assert_same_direction, save

WORDS = ["<pad>", "<unk>", "<s>", "a", "photo", "of", "cat", "dog", "two", "small", "<eos>"]
TEXTS = ["a photo of a cat", "two small dog", "dog", "a " * 60]
TEXT = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A <eos>", special_tokens=[("<s>", 2), ("<eos>", len(WORDS) - 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write(folder: Path, kind: str) -> PreTrainedModel:
    ends = {"bos_token_id": 2, "eos_token_id": len(WORDS) - 1}
    if kind == "clip":
        config: Any = transformers.CLIPConfig(
            text_config={**TEXT, **ends, "pad_token_id": 0}, vision_config=VISION, projection_dim=24
        )
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    else:  # the config's padding is not the tokenizer's, as of checkpoints with another tokenizer
        config = transformers.SiglipConfig(text_config={**TEXT, **ends, "projection_size": 48}, vision_config=VISION)
        size = {"size": {"height": 32, "width": 32}}
    model = save(folder, "CLIPModel" if kind == "clip" else "SiglipModel", config)
    tokenizer().save_pretrained(folder)
    of_images = transformers.CLIPImageProcessor if kind == "clip" else transformers.SiglipImageProcessor
    of_images(**size).save_pretrained(folder)
    return model


Made = tuple[Path, PreTrainedModel, LLM]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write(folder, request.param), build(folder)


def build(folder: Path, **given: Any) -> LLM:
    return LLM(EngineConfig(ModelConfig(str(folder), **{"dtype": "float32", **given}), num_threads=1))


def image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colors).convert(mode)


IMAGES = [image(40, 32), image(33, 90, seed=1), image(200, 20, seed=2), image(1, 1), image(3, 500), image(1, 3)]
MODES = [image(40, 36, mode, seed=3) for mode in ("CMYK", "RGBA", "P", "L", "1", "LA")]


def of_image(given: Any) -> dict[str, Any]:
    return {"prompt": "", "multi_modal_data": {"image": given}}


def vectors(llm: LLM, prompts: list[Any], **given: Any) -> list[np.ndarray]:
    return [np.float32(output.outputs.embedding) for output in llm.embed(prompts, use_tqdm=False, **given)]


@torch.inference_mode()
def expected(folder: Path, model: PreTrainedModel, given: str | Image.Image) -> np.ndarray:
    theirs: Any = model
    if isinstance(given, str):
        padding = {"padding": "max_length", "max_length": 64} if model.config.model_type == "siglip" else {}
        ids = tokenizer()(given, return_tensors="pt", return_token_type_ids=False, return_attention_mask=False, **padding)
        found = theirs.get_text_features(**ids)
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        as_array = np.asarray(given.convert("RGB"))
        pixels = processor(as_array, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        found = theirs.get_image_features(pixel_values=pixels.to(model.dtype))
    features = found if isinstance(found, torch.Tensor) else found.pooler_output
    return features[0].double().numpy()


def test_texts_and_images_are_embedded_as_by_transformers(made: Made) -> None:
    folder, model, llm = made
    prompts = [*TEXTS, *map(of_image, [*IMAGES, *MODES])]
    for found, given in zip(vectors(llm, prompts), [*TEXTS, *IMAGES, *MODES], strict=True):
        assert_same_direction(found, expected(folder, model, given))
    plan = llm.plan()
    assert plan["linear"]["calls"] > 0 and "Attention" in plan["library"]["note"]


def test_in_bfloat16(made: Made) -> None:
    folder, _, _ = made
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    prompts = [*TEXTS, *map(of_image, IMAGES)]
    for found, given in zip(vectors(build(folder, dtype="bfloat16"), prompts), [*TEXTS, *IMAGES], strict=True):
        theirs = expected(folder, model, given)
        assert 1 - found @ theirs / np.linalg.norm(theirs) < 1e-3


def test_alone_as_in_a_batch(made: Made) -> None:
    _, _, llm = made
    prompts = [TEXTS[0], of_image(IMAGES[0]), TEXTS[1], of_image(IMAGES[1])]
    for prompt, among in zip(prompts, vectors(llm, prompts)):
        assert np.array_equal(vectors(llm, [prompt])[0], among)


def test_tokens_and_raw_features(made: Made) -> None:
    folder, model, llm = made
    ids = tokenizer()(TEXTS[0]).input_ids
    [found] = vectors(llm, [{"prompt_token_ids": ids}], pooling_params=PoolingParams(use_activation=False))
    np.testing.assert_allclose(found, expected(folder, model, TEXTS[0]), rtol=1e-4, atol=1e-5)
    [output] = llm.embed(TEXTS[0], use_tqdm=False)
    assert len(output.prompt_token_ids) == (64 if model.config.model_type == "siglip" else len(ids))


def test_a_text_that_is_too_long(made: Made) -> None:
    _, model, llm = made
    longest = 64 if model.config.model_type == "siglip" else 77
    with pytest.raises(ValueError, match=f"82 tokens, but the model takes at most {longest}"):
        vectors(llm, ["a " * 80])
    with pytest.raises(ValueError, match="prompt_name='query' cannot work: it is for texts"):
        vectors(llm, [of_image(IMAGES[0])], prompt_name="query")
    [cut] = vectors(llm, ["a " * 80], truncate_prompt_tokens=-1)
    assert np.array_equal(cut, vectors(llm, ["a " * (longest - 2)])[0])


def moving() -> Image.Image:
    data = io.BytesIO()
    IMAGES[0].save(data, "GIF", save_all=True, append_images=[image(40, 32, seed=9)])
    return Image.open(data)


def test_of_images_that_move_the_first_is_taken(made: Made) -> None:
    _, _, llm = made
    still = moving()
    still.seek(0)
    assert np.array_equal(vectors(llm, [of_image(moving())])[0], vectors(llm, [of_image(still.convert("RGB"))])[0])


def test_images_that_are_none(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, llm = made
    cut = io.BytesIO()
    image(64, 64).save(cut, "PNG")
    broken = Image.open(io.BytesIO(cut.getvalue()[:2000]))
    for given, said in (
        (of_image("cat.png"), "must be a PIL image; found str"),
        (of_image(Image.new("RGB", (0, 0))), "0 x 0 cannot work"),
        (of_image(Image.new("RGB", (201, 1))), "one side may be 200 times"),
        (of_image(broken), "the image cannot be read: OSError"),
        ({"prompt": "a cat", "multi_modal_data": {"image": IMAGES[0]}}, "embedded apart: leave out prompt"),
        ({"prompt": "", "multi_modal_data": {"video": IMAGES[0]}}, "'multi_modal_data' must be"),
        ({"prompt": "", "multi_modal_data": [IMAGES[0]]}, "'multi_modal_data' must be"),
        ({"prompt_token_ids": np.array([1, 2]), "multi_modal_data": {"image": IMAGES[0]}}, "leave out prompt_token_ids"),
    ):
        with pytest.raises(ValueError, match=said):
            vectors(llm, [given])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="40 x 32 cannot work: it must have from 1 to 1000 pixels"):
        vectors(llm, [of_image(IMAGES[0])])
    assert not llm.engine.has_unfinished()


def varied(folder: Path, to: Path, file: str = "", **given: Any) -> Path:
    """A copy of a checkpoint with other fields in one of its files; "text_config.x" is one of the text's."""
    shutil.copytree(folder, to)
    if not given:
        return to
    found = json.loads((to / file).read_text())
    for key, value in given.items():
        part, dot, name = key.partition(".")
        (found[part] if dot else found)[name if dot else key] = value
    (to / file).write_text(json.dumps(found))
    return to


def test_what_prepares_images_for_another_model_fails_their_requests_alone(made: Made, tmp_path: Path) -> None:
    folder, _, llm = made
    larger = {"size": {"height": 64, "width": 64}, "do_center_crop": False}
    for number, given in enumerate((larger, {"do_resize": False, "do_center_crop": False}, {"image_mean": [float("nan")] * 3})):
        own = build(varied(folder, tmp_path / str(number), "preprocessor_config.json", **given))
        with pytest.raises(ValueError, match=r"it wants \(3, 32, 32\) finite numbers of each, and the preprocessor_config.json in"):
            vectors(own, [TEXTS[0], of_image(IMAGES[1])])
        assert np.array_equal(vectors(own, TEXTS[:1])[0], vectors(llm, TEXTS[:1])[0])
    missing = varied(folder, tmp_path / "missing")
    (missing / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"cannot take images: of the preprocessor_config.json in .* transformers says OSError"):
        vectors(build(missing), [of_image(IMAGES[0])])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text_config": "x"}, "refuses its config.json.*Field 'text_config'"),
        ({"vision_config": [1]}, "refuses its config.json.*Field 'vision_config'"),
        ({"text_config.max_position_embeddings": 1.5}, "refuses its config.json.*'max_position_embeddings'"),
        ({"text_config.hidden_act": "evil"}, "refuses its config.json.*KeyError: 'evil'"),
        ({"text_config.num_attention_heads": 0}, "refuses its config.json.*ZeroDivisionError"),
        ({"dtype": [1]}, "refuses its config.json"),
        ({"text_config.vocab_size": 5}, "does not fit its config.json: .*mismatched_keys.*token_embedding"),
        ({"vision_config.patch_size": 16}, "does not fit its config.json: .*mismatched_keys.*patch_embedding"),
        ({"architectures": [1]}, r"architectures=\[1\], expected a list of names"),
        ({"matryoshka_dimensions": [1000]}, "but embeddings have"),
    ],
)
def test_a_config_that_is_malformed_is_told(made: Made, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(varied(made[0], tmp_path / "m", "config.json", **given))


def test_tokens_that_the_model_needs_and_has_not(made: Made, tmp_path: Path) -> None:
    folder, model, _ = made
    if model.config.model_type == "clip":
        for end in (None, [1, 2]):
            own = varied(folder, tmp_path / str(end), "config.json", **{"text_config.eos_token_id": end})
            with pytest.raises(ValueError, match="CLIP takes them where they end, and its eos_token_id is"):
                build(own)
        return
    own, other = varied(folder, tmp_path / "m"), tokenizer()
    other.add_special_tokens({"pad_token": "<fill>"})
    other.save_pretrained(own)
    with pytest.raises(ValueError, match=f"pad_token_id={len(WORDS)}, but the model has ids 0 to {len(WORDS) - 1}"):
        build(own)


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def encoded(given: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    given.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_urls_are_turned_as_their_exif_data_say(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = url(encoded(IMAGES[0], "PNG", exif=exif))
    assert np.array_equal(np.asarray(image_from_url(given)), np.asarray(load_image(given)))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_of_images_of_urls_only_formats_without_programs_are_read() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert image_from_url(url(encoded(IMAGES[0], kind))).size == IMAGES[0].size
    for data in (POSTSCRIPT, encoded(IMAGES[0], "TIFF"), encoded(IMAGES[0], "PPM")):
        with pytest.raises(ValueError, match=r"no image that Pillow can open: .* \(formats: PNG, "):
            image_from_url(url(data))
    with pytest.raises(ValueError, match="the image cannot be read: OSError"):
        image_from_url(url(encoded(IMAGES[0])[:-200]))


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    IMAGES[0].save(data, "PNG")
    assert np.array_equal(np.asarray(image_from_url(url(data.getvalue()))), np.asarray(IMAGES[0]))
    for given, said in (
        ("http://169.254.169.254/latest", "Other URLs are not fetched"),
        ("file:///etc/passwd", "Other URLs are not fetched"),
        ({"url": "x"}, "Other URLs are not fetched"),
        ("data:image/png,abc", "must be in base64"),
        ("data:image/png;base64,a*b", "holds no base64"),
        (url(b"GIF89a"), "no image that Pillow can open"),
        (url(b""), "no image that Pillow can open"),
    ):
        with pytest.raises(ValueError, match=said):
            image_from_url(given)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"no image that Pillow can open: .*decompression bomb"):
        image_from_url(url(data.getvalue()))


def test_what_a_model_with_towers_cannot_do(made: Made) -> None:
    folder, _, llm = made
    with pytest.raises(ValueError, match="pools and generates nothing: use embed"):
        llm.generate(TEXTS, SamplingParams(max_tokens=1))
    with pytest.raises(ValueError, match="task='classify' cannot work: this model does embed"):
        llm.classify(TEXTS)
    with pytest.raises(ValueError, match="compares texts with images, and no texts with each other"):
        llm.score("a", "b")
    for given, said in (
        ({"runner": "generate"}, "cannot generate or classify"),
        ({"convert": "classify"}, "cannot generate or classify"),
        ({"architecture": {"architectures": ["CLIPForImageClassification"]}}, "cannot generate or classify"),
        ({"pooler": {"pooling_type": "MEAN"}}, r"model\.pooler\.pooling_type cannot work"),
        ({"backend": "native"}, "cannot run natively"),
        ({"architecture": {"model_type": "siglip2"}}, "its images keep their shapes"),
    ):
        with pytest.raises(ValueError, match=said):
            build(folder, **given)
    for kind in ("simulated", "null"):
        config = EngineConfig(ModelConfig(str(folder)))
        config.executor.kind = kind
        with pytest.raises(ValueError, match="needs a model that the native decoder covers"):
            LLM(config)
    with pytest.raises(ValueError, match="this engine takes none: the model reads text alone"):
        LLM("tiny").generate(of_image(IMAGES[0]))
