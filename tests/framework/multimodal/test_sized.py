"""Images of a size, by closed forms, against the library's processors; and what a model without a folder makes of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from framework.build import build_engine, input_processor
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig
from framework.models.read import read_model
from framework.multimodal import sized
from framework.multimodal.processor import ImagePrompts
from framework.multimodal.sized import SizedImages
from framework.worker.local_executor import LocalExecutor

from .checkpoints import KINDS, TEXT, make_without_weights, picture, tokenizer
from .cogvlm import Checkpoint
from .test_phi3_v import CONFIG as PHI3_V

INTERNVL_CHAT = {
    "model_type": "internvl_chat",
    "llm_config": {**TEXT, "model_type": "internlm2"},
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 28,
        "patch_size": 7,
        "norm_type": "layer_norm",
        "qk_normalization": False,
    },
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "ps_version": "v2",
    "max_dynamic_patch": 7,
}
INTERNVL_TOKENS = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
NAMES = (*KINDS, "mllama", "internvl_chat", "phi3_v", "cogvlm", "cogvlm2")
PUBLISHED = {"QWEN_PIXELS": (64, 64 * 24), "INTERNVL_TILES": (1, 4), "PHI3_CROPS": 4}
"""What the tiny processors have in place of it."""


def both(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ImagePrompts, SizedImages]:
    """What makes prompts of a model in a folder, and of the same by its shape alone."""
    for constant, value in PUBLISHED.items():
        monkeypatch.setattr(sized, constant, value)
    if name.startswith("cogvlm"):
        Checkpoint(folder, second=name == "cogvlm2")
    elif name in ("phi3_v", "internvl_chat"):
        (folder / "config.json").write_text(json.dumps(PHI3_V if name == "phi3_v" else INTERNVL_CHAT))
        (folder / "preprocessor_config.json").write_text(json.dumps({"num_crops": 4}))
        tokenizer({"image_token": "<|image|>"} if name == "phi3_v" else INTERNVL_TOKENS).save_pretrained(folder)
    else:
        make_without_weights(name, folder)
    config = EngineConfig(ModelConfig(str(folder), load_format="dummy"))
    info = read_model(config.model)
    prompts = input_processor(config.model, info, config).image_prompts
    assert isinstance(prompts, ImagePrompts)
    return prompts, SizedImages(config.model, info, None, None)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_a_size_is_laid_out_as_the_processor_does_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, images = both(name, tmp_path, monkeypatch)
    tiled, more = set(), 2 if name == "gemma3" else 0  # two line breaks are one token of Gemma, and two bytes

    @settings(max_examples=25 if name == "phi3_v" else 60, deadline=None, derandomize=True)
    @given(st.integers(1, 400), st.integers(1, 400))
    def agree(width: int, height: int) -> None:
        assume(max(width, height) < 28 * min(width, height))  # where LLaVA-NeXT's own processor has pixels left
        theirs, ours = prompts.prepared(picture(0, width, height)), images.of_size(width, height, b"")
        assert (ours.count, len(ours.token_ids) + more, ours.grid) == (theirs.count, len(theirs.token_ids), theirs.grid)
        assert {key: (value.shape, value.dtype.kind) for key, value in ours.inputs.items()} == {
            key: (value.shape, value.dtype.kind) for key, value in theirs.inputs.items()
        }
        for key in ours.inputs.keys() - {"pixel_values"}:
            assert (ours.inputs[key] == theirs.inputs[key]).all(), key
        tiled.add(ours.count)

    agree()
    assert len(tiled) > 1 or name in ("llava", "gemma3", "cogvlm", "cogvlm2", "mllama")


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("llava-1.5-7b", (640, 480), 576),
        ("qwen2-vl-7b", (1260, 700), 1125),
        ("qwen2-vl-7b", (8000, 6000), 16170),
        ("internvl2-8b", (448, 448), 256),
        ("internvl2-8b", (1344, 896), 7 * 256),
        ("cogvlm-chat", (640, 480), 1227),
        ("phi-3-vision", (1344, 1344), 2509),
    ],
)
def test_published_models_make_of_an_image_what_their_papers_say(name: str, size: tuple[int, int], count: int) -> None:
    config = shape(name)
    images = SizedImages(config.model, read_model(config.model), None, None)
    assert images.of_size(*size, b"").count == count


def shape(name: str, kind: str = "simulated", **model: Any) -> EngineConfig:
    """Of conf/model."""
    import yaml

    found = yaml.safe_load((Path(__file__).parents[3] / "conf" / "model" / f"{name}.yaml").read_text())["architecture"]
    given = ModelConfig(name, load_format="dummy", architecture=found, **model)
    return EngineConfig(given, CacheConfig(block_size=16, num_blocks=600), executor=ExecutorConfig(kind))


def test_images_of_one_name_and_of_other_sizes_are_others() -> None:
    """Also where the model makes them one size."""
    config = shape("llava-1.5-7b")
    images = SizedImages(config.model, read_model(config.model), None, None)
    keys = [images.of_size(*size, name).key for size in ((1, 12), (11, 2), (2, 11)) for name in (b"1", b"2", b"")]
    assert len(set(keys)) == 9 and images.of_size(1, 12, b"1").key == keys[0]


def test_a_model_without_a_folder_takes_images_among_token_ids() -> None:
    engine = build_engine(shape("llava-1.5-7b", "null"))
    prompt = {"prompt_token_ids": [5, 32000, 6], "multi_modal_data": {"image": picture(0)}}
    given = engine.inputs.prompt(prompt)
    assert given.token_ids == [5, *[32000] * 576, 6] and [(image.start, image.count) for image in given.images] == [(1, 576)]
    assert given.images[0].key == engine.inputs.prompt(prompt).images[0].key
    assert given.images[0].key != engine.inputs.prompt({**prompt, "multi_modal_data": {"image": picture(1)}}).images[0].key
    with pytest.raises(ValueError, match=r"2 times 'token 32000', the placeholder of an image, and multi_modal_data has 1"):
        engine.inputs.prompt({**prompt, "prompt_token_ids": [32000, 32000]})
    with pytest.raises(ValueError, match="1 x 500 cannot work: one side may be 200 times"):
        engine.inputs.prompt({**prompt, "multi_modal_data": {"image": picture(0, 1, 500)}})


def test_a_borrowed_tokenizer_makes_no_text_of_images() -> None:
    engine = build_engine(shape("llava-1.5-7b", "null", tokenizer="tiny"))
    assert engine.inputs.prompt("one two").token_ids
    with pytest.raises(ValueError, match="pass prompt_token_ids, with 32000 in the place of each image"):
        engine.inputs.prompt({"prompt": "one <image> two", "multi_modal_data": {"image": picture(0)}})


def test_a_tower_of_another_layout_is_refused_by_name() -> None:
    config = shape("llava-1.5-7b", "null")
    config.model.architecture["vision_feature_select_strategy"] = "full"
    engine = build_engine(config)
    with pytest.raises(ValueError, match="vision_feature_select_strategy='full'"):
        engine.inputs.prompt({"prompt_token_ids": [32000], "multi_modal_data": {"image": picture(0)}})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llava", "vision_config.image_size", 0),
        ("llava", "vision_config.image_size", [28, 28]),
        ("llava", "vision_config.patch_size", None),
        ("llava", "vision_config.image_size", 3),
        ("llava_next", "image_grid_pinpoints", []),
        ("llava_next", "image_grid_pinpoints", [[28, 56], [56]]),
        ("llava_next", "image_grid_pinpoints", [["a", "b"]]),
        ("llava_next", "image_grid_pinpoints", [[28, 14]]),
        ("qwen2_vl", "vision_config.spatial_merge_size", 0),
        ("qwen2_vl", "vision_config.temporal_patch_size", [2]),
        ("qwen2_5_vl", "vision_config.window_size", 0),
        ("gemma3", "mm_tokens_per_image", None),
        ("gemma3", "vision_config.patch_size", -1),
        ("internvl", "vision_config.patch_size", []),
        ("internvl", "vision_config.image_size", [28, 14]),
        ("internvl", "downsample_ratio", 0.0),
    ],
)
def test_sizes_that_nothing_can_be_computed_with_are_named(name: str, field: str, value: Any) -> None:
    architecture = {key: found for key, found in KINDS[name].config().to_dict().items() if found is not None}
    *sections, last = field.split(".")
    (architecture[sections[0]] if sections else architecture)[last] = value
    with pytest.raises(ValueError, match=last):
        read_model(ModelConfig("model", load_format="dummy", architecture=architecture))


def test_an_image_without_embeddings_is_refused() -> None:
    architecture = {key: found for key, found in KINDS["internvl"].config().to_dict().items() if found is not None}
    architecture["vision_config"]["patch_size"] = 28
    config = ModelConfig("model", load_format="dummy", architecture=architecture)
    with pytest.raises(ValueError, match=r"no embeddings: change vision_config.image_size or patch_size"):
        SizedImages(config, read_model(config), None, None).of_size(28, 28, b"")


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_step_that_memory_is_measured_with_has_the_largest_image(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None that the library's processor makes is larger, and the tower can encode it."""
    prompts, _ = both(name, tmp_path, monkeypatch)
    config = EngineConfig(ModelConfig(str(tmp_path), load_format="dummy"), CacheConfig(4, num_blocks=600))
    executor = build_engine(config).executor
    assert isinstance(executor, LocalExecutor) and executor._tower is not None
    encode, seen = executor._tower.encode, list[tuple[int, int]]()

    def watched(inputs: dict[str, Any]) -> torch.Tensor:
        found = encode(inputs)
        seen.append((inputs["pixel_values"].size, len(found)))
        return found

    monkeypatch.setattr(executor._tower, "encode", watched)
    with torch.inference_mode():
        executor._forward_null_batch(config, torch.device("cpu"))
    ((pixels, count),) = seen
    assert count <= executor.max_model_len
    sizes = [(28 * columns, 28 * rows) for columns in (1, 2, 3, 4, 6, 12) for rows in (1, 2, 3, 4, 6, 12)]
    found = [prompts.prepared(picture(0, *size)) for size in sizes]
    assert pixels >= max(image.inputs["pixel_values"].size for image in found if image.count <= executor.max_model_len)
