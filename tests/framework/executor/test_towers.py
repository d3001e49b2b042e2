"""What towers for images cost under simulation, against the library's own, and ours of its parts."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import MllamaModel

from framework.config import EngineConfig, ModelConfig
from framework.engine.encoding import ImageViews
from framework.executor.calls import CallList
from framework.executor.encoders import Item, Parts
from framework.executor.towers import Tower
from framework.models.launches import ELEMENTWISE
from framework.models.read import ModelInfo, read_model
from framework.models.tower import _modules
from framework.multimodal import sized
from framework.multimodal.items import ImageItem
from framework.multimodal.sized import SizedImages
from framework.plan import op_costs

from ...counted_launches import CountedLaunches
from ..multimodal.checkpoints import KINDS, MLLAMA
from ..multimodal.cogvlm import CONFIG as COGVLM
from ..multimodal.cogvlm import VISION
from ..multimodal.test_phi3_v import CONFIG as PHI3_V
from ..multimodal.test_sized import INTERNVL_CHAT

SHAPES: dict[str, dict[str, Any]] = {
    **{name: kind.config().to_dict() for name, kind in {**KINDS, "mllama": MLLAMA}.items()},
    "internvl_chat": INTERNVL_CHAT,
    "phi3_v": PHI3_V,
    "cogvlm": {**COGVLM, "vision_config": {**VISION, "image_size": 28}},
    "cogvlm2": {**COGVLM, "vision_config": {**VISION, "image_size": 56}, "num_multi_query_heads": 2},
}
SHAPES["cogvlm"]["model_type"] = SHAPES["cogvlm2"]["model_type"] = "cogvlm"
PRODUCTS = ("linear", "paged_attention_prefill")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of tiny models."""
    for constant, value in {"QWEN_PIXELS": (64, 64 * 24), "INTERNVL_TILES": (1, 4), "PHI3_CROPS": 4}.items():
        monkeypatch.setattr(sized, constant, value)


def model_of(name: str) -> tuple[EngineConfig, ModelInfo, Tower]:
    architecture = {key: value for key, value in SHAPES[name].items() if value is not None}
    config = EngineConfig(ModelConfig("model", load_format="dummy", dtype="float32", architecture=architecture))
    info = read_model(config.model)
    tower = Tower.of(config, info)
    assert tower is not None
    return config, info, tower


def image_of(info: ModelInfo, images: SizedImages, width: int, height: int) -> ImageItem:
    """As the engine has it encoded."""
    prepared = images.of_size(width, height, b"")
    image = ImageItem(0, prepared.count, prepared.key, prepared.inputs, prepared.grid)
    assert info.vision is not None
    if info.vision.tile is None:
        return image
    given = ImageViews(info.vision.tile, 16).encoder_input([image])
    assert given is not None
    return given.images[0]


def tensors(image: ImageItem) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in image.inputs.items()}


@torch.inference_mode()
def encode(module: Any, inputs: dict[str, torch.Tensor]) -> None:
    if isinstance(module, MllamaModel):
        num_tiles = int(inputs["aspect_ratio_mask"].sum())
        module.multi_modal_projector(module.vision_model(**inputs).last_hidden_state[0, 0, :num_tiles])
    else:
        module.get_image_features(**inputs, return_dict=True)


def library_flops(module: Any, image: ImageItem) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # which is one that it counts
        encode(module, tensors(image))
    return counter.get_total_flops()


def flops(config: EngineConfig, info: ModelInfo, tower: Tower, item: Item) -> float:
    assert info.architecture is not None
    calls, costs = CallList(info, info.architecture, config, fused=False).encoders((tower.stack,)), op_costs()
    found = ((call, count, call.lens(item)) for call, count in calls.items() if call.op in PRODUCTS and call.rows == "encoded")
    return sum(count * costs[call.op](dict(call.dims), lens, lens).flops for call, count, lens in found)


@pytest.mark.parametrize("name", SHAPES)
def test_products_are_those_that_the_library_computes(name: str) -> None:
    """Counted by torch in the library's module (or, of types that it has not, in ours of its parts)."""
    config, info, tower = model_of(name)
    module = _modules(config.model, info).eval().float()
    images = SizedImages(config.model, info, None, None)
    for width, height in ((28, 28), (60, 20), (33, 100), (40, 24)):
        image = image_of(info, images, width, height)
        item = tower.item(image)
        found, expected = flops(config, info, tower, item), library_flops(module, image)
        if isinstance(item, Parts) and tower.joined:  # the mask is an outer product of a vector that says what is padding
            found += 2 * sum(item.parts) ** 2
        assert found == expected


def test_layers_that_a_tower_has_not_are_no_layers_without_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a published list is left in a config of fewer layers."""
    known = SHAPES["qwen2_5_vl"]
    expected = model_of("qwen2_5_vl")[2].stack
    few = {**known, "vision_config": {**known["vision_config"], "fullatt_block_indexes": [1, 1, 7, 15, 23]}}
    monkeypatch.setitem(SHAPES, "qwen2_5_vl", few)
    assert model_of("qwen2_5_vl")[2].stack == expected and expected.windowed_layers == 1


@pytest.mark.parametrize("name", SHAPES)
def test_the_largest_image_is_that_of_all_that_are_taken(name: str) -> None:
    """Of images of all shapes, whose embeddings are kept."""
    config, info, tower = model_of(name)
    images = SizedImages(config.model, info, None, None)
    sides = (1, 7, 20, 28, 40, 56, 60, 84, 112, 200, 336, 500, 672, 1344)
    found = [
        images.of_size(width, height, b"") for width in sides for height in sides if max(width, height) <= 200 * min(width, height)
    ]
    for capacity in (1, 5, 16, 20, 70, 16384):
        config.scheduler.encoder_cache = capacity
        items = [tower.item(ImageItem(0, image.count, b"", image.inputs)) for image in found if image.count <= capacity]
        largest = max((positions(item) for item in items), default=0)
        assert largest <= tower.encoders(config, info).max_positions <= 1.1 * largest or name == "llava_next"


def positions(item: Item) -> int:
    return item if isinstance(item, int) else sum(item.parts)


@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_about_those_of_the_library(name: str) -> None:
    """At their peak, as torch counts what it allocates, of the largest image."""
    config, info, tower = model_of(name)
    module, images = _modules(config.model, info).eval().float(), SizedImages(config.model, info, None, None)
    found = (image_of(info, images, *size) for size in images.sizing.sizes(config.scheduler.encoder_cache))
    image = max(found, key=lambda image: positions(tower.item(image)))
    inputs = tensors(image)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        encode(module, inputs)
    kineto: Any = profiler.profiler
    changes = [event.nbytes() for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    estimate = tower.encoders(config, info).activation_bytes(4)
    assert 0.5 < estimate / max(accumulate(changes)) < 1.25


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "internvl", "mllama"])
def test_a_layer_launches_what_torch_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside products and attention: what one more layer adds."""
    found, shape = [], SHAPES[name]
    for more in (0, 1):
        vision = dict(shape["vision_config"])
        vision |= {depth: vision[depth] + more for depth in ("num_hidden_layers", "depth") if depth in vision}
        monkeypatch.setitem(SHAPES, name, {**shape, "vision_config": vision})
        config, info, tower = model_of(name)
        image = image_of(info, SizedImages(config.model, info, None, None), 40, 24)
        module, inputs = _modules(config.model, info).eval().float(), tensors(image)
        with CountedLaunches() as seen:
            encode(module, inputs)
        found.append((sum(call.number for call in tower.stack.calls(4) if call.op == ELEMENTWISE), seen.count))
    (ours, torch_sees), (ours_deeper, torch_sees_deeper) = found
    assert ours_deeper - ours == torch_sees_deeper - torch_sees


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_those_of_the_library(name: str) -> None:
    config, info, tower = model_of(name)
    module = _modules(config.model, info)
    assert tower.encoders(config, info).weight_bytes == 4 * sum(weight.numel() for weight in module.parameters())
