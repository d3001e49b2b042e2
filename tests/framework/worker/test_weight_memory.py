"""Memory is counted once, however tensors are reached."""

from __future__ import annotations

import functools
from typing import Any

import torch

from framework.worker.weight_memory import tensor_bytes


class Slots:
    __slots__ = ("missing", "weight")

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


class Holder:
    def __init__(self, **held: Any) -> None:
        self.__dict__ |= held
        self.circle = self

    def method(self) -> None: ...


def test_every_way_to_hold_a_tensor_counts_and_shared_memory_counts_once() -> None:
    big, small = torch.zeros(100), torch.zeros(7, dtype=torch.int8)
    shared = [big, big[3:], big.view(10, 10)]
    assert tensor_bytes(shared) == 400
    for held in (
        {"a": (small,)},
        Slots(small),
        Holder(inside=Slots(small)),
        functools.partial(print, small),
        functools.partial(print, key=small),
        lambda: small,
        Holder(weight=small).method,
    ):
        assert tensor_bytes([shared, held]) == 407


def test_tensors_in_a_layout_of_a_library_count_by_their_elements() -> None:
    if torch.backends.mkldnn.is_available():
        assert tensor_bytes({"packed": torch.zeros(8, 16).to_mkldnn()}) == 8 * 16 * 4
