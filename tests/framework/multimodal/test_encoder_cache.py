"""The books of embeddings, against an executor that does as it is told; and positions against transformers."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.config import SchedulerConfig
from framework.engine.request import Request
from framework.engine.step import StepInput
from framework.multimodal.encoder_cache import EncoderCache
from framework.multimodal.items import ImageItem, rotary_positions
from framework.sampling_params import SamplingParams


def item(start: int, count: int, name: int, grid: tuple[int, int] | None = None) -> ImageItem:
    return ImageItem(start, count, bytes([name]) * 16, {"pixels": np.array([name])}, grid)


def request(images: list[ImageItem], num_tokens: int) -> Request:
    found = Request("r", [0] * num_tokens, SamplingParams(seed=0), num_tokens + 1)
    found.images = tuple(images)
    return found


def books(budget: int = 8, capacity: int = 12, whole: bool = False, chunk: int = 64, chunked: bool = True) -> EncoderCache:
    room = {"encoder_budget": budget, "encoder_cache": capacity}
    limits = {"max_num_batched_tokens": chunk, "max_chunk_tokens": chunk}
    return EncoderCache(SchedulerConfig(**room, **limits, chunked_prefill=chunked), whole)


def told(cache: EncoderCache) -> tuple[list[int], list[int]]:
    step = StepInput(0, [], [], [])
    cache.fill(step)
    return [image.key[0] for image in step.images], [key[0] for key in step.forgotten]


def test_a_chunk_stops_before_an_image_that_the_budget_leaves_no_room_for() -> None:
    cache, asked = books(), request([item(2, 5, 1), item(9, 5, 2)], 20)
    cache.start_step()
    assert cache.fit(asked, 0, 20) == 9
    assert told(cache) == ([1], [])
    cache.start_step()
    assert cache.fit(asked, 9, 11) == 11
    assert told(cache) == ([2], [])


def test_an_image_that_is_larger_than_the_budget_has_a_step_of_its_own() -> None:
    cache, asked = books(budget=4), request([item(0, 2, 1), item(3, 9, 2)], 20)
    cache.start_step()
    assert cache.fit(asked, 0, 20) == 3
    cache.start_step()
    assert cache.fit(asked, 3, 17) == 17


def test_one_image_of_many_requests_is_encoded_once_and_the_oldest_goes_first() -> None:
    cache = books(capacity=10)
    for name in (1, 2, 1):
        cache.start_step()
        assert cache.fit(request([item(0, 5, name)], 9), 0, 9) == 9
    assert told(cache) == ([1, 2], [])
    cache.start_step()
    assert cache.fit(request([item(0, 5, 3)], 9), 0, 9) == 9
    assert told(cache) == ([3], [2])


def test_embeddings_that_a_request_is_in_the_middle_of_stay() -> None:
    cache, first = books(capacity=6), request([item(0, 5, 1)], 9)
    cache.start_step()
    assert cache.fit(first, 0, 3) == 3
    cache.start_step()
    other = request([item(1, 5, 2)], 9)
    assert cache.fit(other, 0, 9) == 1
    cache.release(first)
    assert cache.fit(other, 1, 8) == 8
    assert told(cache) == ([2], []), "the first was never sent, and so is not forgotten either"


def test_a_chunk_never_ends_within_an_image_whose_tokens_see_each_other() -> None:
    cache, asked = books(whole=True), request([item(2, 5, 1)], 20)
    cache.start_step()
    assert cache.fit(asked, 0, 6) == 2
    assert cache.fit(asked, 0, 7) == 7
    assert cache.fit(asked, 4, 2) == 0, "the cached prefix may end within one"
    assert cache.fit(asked, 4, 3) == 3
    with pytest.raises(ValueError, match="computed in one step, but a step takes 4"):
        books(whole=True, chunk=4).check(asked.images)


def test_an_image_for_which_there_is_never_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 embeddings, but 12 are kept \(scheduler.encoder_cache\)"):
        books().check([item(0, 13, 1)])


def test_without_chunks_the_images_of_a_prompt_are_encoded_in_one_step_or_in_none() -> None:
    cache = books(budget=8, capacity=20, chunked=False)
    cache.start_step()
    assert cache.fit(request([item(0, 4, 1)], 6), 0, 6) == 6
    both = request([item(0, 5, 2), item(6, 5, 3), item(12, 5, 2)], 20)
    assert cache.fit(both, 0, 20) == 0 and told(cache) == ([1], [])
    cache.start_step()
    assert cache.fit(both, 0, 20) == 20, "more than the budget, and alone"
    assert told(cache) == ([2, 3], [])
    cache.start_step()
    assert cache.fit(request([item(0, 7, 4)], 9), 0, 9) == 9
    assert cache.fit(both, 0, 20) == 20, "which are kept"
    assert cache.fit(request([item(0, 2, 5)], 9), 0, 9) == 0 and told(cache) == ([4], [1])
    cache.check(both.images)
    with pytest.raises(ValueError, match=r"of the prompt have 24 embeddings.* but 20 are kept \(scheduler.encoder_cache\)"):
        cache.check([item(start, 8, start) for start in (0, 8, 16)])
    books(capacity=20).check([item(start, 8, start) for start in (0, 8, 16)])


def test_without_chunks_a_prompt_for_whose_images_there_is_no_room_has_none_encoded() -> None:
    cache = books(budget=30, capacity=12, chunked=False)
    cache.start_step()
    assert cache.fit(request([item(0, 4, 1)], 6), 0, 6) == 6
    assert cache.fit(request([item(0, 5, 2), item(6, 5, 3)], 20), 0, 20) == 0
    assert told(cache) == ([1], []) and cache.num_queries == 1
    cache.start_step()
    assert cache.fit(request([item(0, 6, 4), item(7, 4, 1)], 20), 0, 20) == 20
    assert told(cache) == ([4], []), "its own image makes no room for another of it"


def test_what_a_failed_step_encoded_is_encoded_again() -> None:
    cache = books()
    cache.start_step()
    cache.fit(request([item(0, 5, 1)], 9), 0, 9)
    step = StepInput(0, [], [], [])
    cache.fill(step)
    cache.lose(step)
    cache.start_step()
    cache.fit(request([item(0, 5, 1)], 9), 0, 9)
    assert told(cache) == ([1], [1])
    after = books()
    after.replace(cache)
    assert told(after) == ([], [1])


def test_what_layers_attend_to_is_encoded_once_within_the_budget_and_kept_where_there_is_room() -> None:
    cache, first, second = books(budget=8, capacity=12), [item(0, 5, 1), item(1, 5, 1)], [item(0, 5, 1), item(3, 4, 2)]
    cache.start_step()
    assert cache.has_budget([item(0, 9, 7)]), "of a step of its own"
    cache.attend(first)
    assert not cache.has_budget(second) and cache.has_budget(first)
    assert told(cache) == ([1], [])
    cache.start_step()
    assert cache.has_budget(second)
    cache.attend(second)
    assert told(cache) == ([2], [])
    cache.start_step()
    cache.attend([item(0, 4, 2), item(1, 13, 3), item(2, 7, 4), item(3, 13, 3)])
    assert told(cache) == ([4, 3], [1]), "3 is longer than all that is kept"
    assert told(cache) == ([], [3])
    assert cache.totals() == {"num_image_queries": 8, "num_image_hits": 4, "num_images_encoded": 4}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_the_executor_has_what_layers_attend_to(seed: int) -> None:
    """As much as the capacity, and what one step has no room for."""
    rng, budget, capacity = random.Random(seed), 9, 12
    cache, kept, sizes = books(budget, capacity), {}, {}
    sizes = {name: rng.randrange(1, 7) for name in range(8)}
    passing: set[bytes] = set()
    for _ in range(60):
        cache.start_step()
        needed, encoded = dict[bytes, int](), 0
        for _ in range(rng.randrange(4)):
            images = [item(place, sizes[name], name) for place, name in enumerate(rng.choices(range(8), k=rng.randrange(1, 5)))]
            if cache.has_budget(images):
                cache.attend(images)
                needed |= {image.key: image.count for image in images}
        step = StepInput(0, [], [], [])
        cache.fill(step)
        assert passing <= set(step.forgotten), "at once"
        for key in step.forgotten:
            kept.pop(key, None)
        new = {image.key: image.count for image in step.images}
        assert len(new) == len(step.images) and not set(new) & set(kept), "nothing is encoded twice"
        kept |= new
        assert set(new) <= set(needed) <= set(kept)
        passing = set(kept) - set(cache._kept)
        assert sum(kept[key] for key in set(kept) - passing) <= capacity and passing <= set(new)
        encoded = sum(new.values())
        assert encoded <= budget or encoded <= sum(max(needed.values()) for _ in range(4))
        if rng.random() < 0.05:
            cache.lose(step)
            kept = {key: count for key, count in kept.items() if key not in new}
            passing -= set(new)
            step = StepInput(0, [], [], [])
            cache.fill(step)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), whole=st.booleans())
def test_whatever_happens_the_executor_has_what_a_step_needs(seed: int, whole: bool) -> None:
    rng = random.Random(seed)
    capacity = rng.randrange(6, 20)
    cache, kept = books(rng.randrange(1, 12), capacity, whole), {}
    sizes = {name: rng.randrange(1, 7) for name in range(12)}
    running: dict[Request, int] = {}
    for _ in range(60):
        while len(running) < 4:
            images, token = [], rng.randrange(3)
            for name in rng.choices(range(12), k=rng.randrange(1, 4)):
                images.append(item(token, sizes[name], name))
                token = images[-1].end + rng.randrange(3)
            running[request(images, token + 1)] = 0
        cache.start_step()
        needed: set[bytes] = set()
        for asked, start in list(running.items()):
            count = cache.fit(asked, start, min(asked.num_tokens - start, rng.randrange(6, 12)))
            needed |= {image.key for image in asked.images if image.start < start + count and image.end > start and count}
            assert not whole or not any(image.start < start + count < image.end for image in asked.images)
            running[asked] += count
            if running[asked] == asked.num_tokens or rng.random() < 0.1:
                cache.release(asked)
                del running[asked]
        step = StepInput(0, [], [], [])
        cache.fill(step)
        for key in step.forgotten:
            del kept[key]
        assert not {image.key for image in step.images} & set(kept), "nothing is encoded twice"
        kept |= {image.key: image.count for image in step.images}
        assert needed <= set(kept) and sum(kept.values()) <= capacity
        if rng.random() < 0.05:
            cache.lose(step)
            for image in step.images:
                del kept[image.key]
            step = StepInput(0, [], [], [])
            cache.fill(step)


def test_every_request_ends_however_little_room_there_is() -> None:
    """In order, and each step gets the first one on."""
    cache = books(budget=1, capacity=6, whole=False)
    waiting = [request([item(1, 6, number), item(7, 3, number + 50)], 12) for number in range(5)]
    computed, steps = dict.fromkeys(waiting, 0), 0
    while computed:
        cache.start_step()
        before, first = dict(computed), next(iter(computed))
        for asked, start in list(computed.items()):
            computed[asked] += cache.fit(asked, start, min(4, asked.num_tokens - start))
        assert sum(computed.values()) > sum(before.values()) and first in computed
        for asked in [asked for asked, count in computed.items() if count == asked.num_tokens]:
            del computed[asked]
        steps += 1
    assert steps < 60


@pytest.mark.parametrize("seed", range(5))
def test_positions_are_those_of_transformers(seed: int) -> None:
    rng = random.Random(seed)
    images, token = [], rng.randrange(4)
    for name in range(3):
        grid = rng.randrange(1, 5), rng.randrange(1, 5)
        images.append(item(token, grid[0] * grid[1], name, grid))
        token = images[-1].end + rng.randrange(1, 4)
    types = torch.zeros(1, token, dtype=torch.int64)
    for image in images:
        types[0, image.start : image.end] = 1
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    kind = transformers.Qwen2VLModel
    model.get_vision_position_ids = lambda *given, **named: kind.get_vision_position_ids(model, *given, **named)
    grids = torch.tensor([[1, 2 * image.grid[0], 2 * image.grid[1]] for image in images if image.grid is not None])
    expected, delta = kind.get_rope_index(model, torch.zeros(1, token, dtype=torch.int64), types, grids)
    found, found_delta = rotary_positions(token, tuple(images))
    assert found.tolist() == expected[:, 0].tolist() and found_delta == int(delta)
