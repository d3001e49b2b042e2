"""Images in the prompts of a workload: where they stand, of which sizes, and which of them are the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from framework.config import ModelConfig
from framework.models.read import read_model
from framework.multimodal import sized
from framework.multimodal.sized import SizedImages
from framework.study.workload import Pictures, Workload, WorkloadConfig, WorkloadRequest
from framework.study.workload.pictures import SentPictures

from ..multimodal.checkpoints import KINDS, VOCAB

COUNT, PLACEHOLDER = 40, 258


@pytest.fixture(scope="module")
def places() -> SizedImages:
    """Of a model whose images have an embedding for 8 x 8 pixels."""
    architecture = {key: value for key, value in KINDS["qwen2_vl"].config().to_dict().items() if value is not None}
    config = ModelConfig("model", load_format="dummy", architecture=architecture)
    return SizedImages(config, read_model(config), None, None)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, places: SizedImages) -> None:
    found: Any = places.sizing
    monkeypatch.setattr(places, "sizing", sized.Merged(found.patch, found.merge, found.patch_inputs, 64, 64 * 400))


def requests(places: SizedImages | None, **given: Any) -> list[WorkloadRequest]:
    asked = {"num_requests": COUNT, "prompt_tokens": 12, "shared_prefix_tokens": 5, "image_width": 64, "image_height": 32, **given}
    config = WorkloadConfig(**({"num_images": 2} | asked if places is not None else asked))
    return list(Workload(config, VOCAB, None, None if places is None else Pictures(config, places)))


def sizes(found: list[WorkloadRequest]) -> set[tuple[int, int] | None]:
    return {image.grid for request in found for image in request.images}


def test_prompts_are_those_without_images_and_images_stand_behind_what_all_share(places: SizedImages) -> None:
    found, texts = requests(places), requests(None)
    where = set()
    for request, text in zip(found, texts, strict=True):
        ids, first, last = request.prompt_token_ids, *request.images
        assert [token for token in ids if token != PLACEHOLDER] == text.prompt_token_ids
        assert first.start >= 5 and ids[:5] == texts[0].prompt_token_ids[:5] and first.end <= last.start
        for image in (first, last):
            assert ids[image.start : image.end] == [PLACEHOLDER] * 32
        where |= {"front" * (first.start == 5), "end" * (last.end == len(ids)), "middle" * (5 < first.start < last.start - 32)}
        assert (request.sampling, request.arrival_s) == (text.sampling, text.arrival_s)
    assert {"front", "middle", "end"} <= where


def test_drawn_tokens_are_no_placeholders(places: SizedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "token_id", 1)
    monkeypatch.setattr(places, "placeholder_id", 0)
    config = WorkloadConfig(num_images=1, image_width=16, image_height=8)
    ids, images = Pictures(config, places).put(0, [0, 1, 2, 0], 0)
    assert len(ids) == 6 and [token for token in ids if token != 1] == [2, 2, 2, 2] and len(images) == 1


def test_no_two_images_are_the_same_unless_so_many_are_asked_for(places: SizedImages) -> None:
    def keys(**given: Any) -> list[bytes]:
        return [image.key for request in requests(places, **given) for image in request.images]

    assert len(set(keys())) == 2 * COUNT and keys() == keys() and not set(keys()) & set(keys(seed=1))
    assert len(set(keys(num_distinct_images=3))) == 3
    assert len(set(keys(num_distinct_images=3, image_spread=0.5))) == 3, "an image that comes again has its size"


def test_sides_are_drawn_around_their_means(places: SizedImages) -> None:
    assert sizes(requests(places)) == {(4, 8)}
    found = [size for size in sizes(requests(places, image_spread=0.5, image_width=128)) if size is not None]
    rows, columns = ({size[side] for size in found} for side in (0, 1))
    assert rows == {2, 3, 4, 5, 6} and 8 <= min(columns) < 11 and 21 < max(columns) <= 24
    assert all(more - less < 6 for less, more in pairwise(sorted(columns)))


def test_of_prompts_with_images_a_trace_knows_nothing(places: SizedImages) -> None:
    trace = {"source": "trace", "format": "mooncake", "arrivals": "trace", "length_scale": 0.001}
    assert all(request.num_known_tokens is not None for request in requests(None, **trace))
    assert all(request.num_known_tokens is None for request in requests(places, **trace))


def test_images_that_no_server_takes_are_not_sent() -> None:
    with pytest.raises(ValueError, match=r"image_spread cannot work: an image of 1 x 480 "):
        SentPictures(WorkloadConfig(num_images=1, image_width=2, image_spread=0.5, image_height=320))
