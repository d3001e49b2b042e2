"""What models have in common whose layers attend over the paged cache."""

from __future__ import annotations

import torch

from ..engine.kv_cache.spec import CacheGroup, PagedKV
from .batch import ForwardBatch
from .expert_balancer import ExpertBalancer
from .layers.experts import Lockstep
from .layers.paged_attention import PagedAttention
from .lora.slots import LoraSlots


class PagedModel:
    """The part of ``Model`` that is about the cache. attention: of each layer, in order."""

    decides_on_host = False
    is_last = True
    lora: LoraSlots | None = None
    lockstep: Lockstep | None = None
    balancer: ExpertBalancer | None = None

    def __init__(self, attention: list[PagedAttention]) -> None:
        self._attention, self._first_of_groups = attention, attention[:1]

    def cache_specs(self) -> list[PagedKV]:
        """What each layer keeps in the cache."""
        return [layer.spec for layer in self._attention]

    def set_groups(self, groups: tuple[CacheGroup, ...]) -> None:
        """Tells which KV group serves which layer."""
        for index, group in enumerate(groups):
            for layer in group.layers:
                self._attention[layer].group = index
        self._first_of_groups = [self._attention[group.layers[0]] for group in groups if group.layers]

    def begin_step(self, batch: ForwardBatch) -> None:
        """Once per step, before ``forward``: lets attention prepare what the layers of a group share."""
        for attention in self._first_of_groups:
            attention.begin_step(batch)

    def join(self, num_tokens: int, device: torch.device) -> None:
        """There is no other scheduler."""
        raise AssertionError("a model without lockstep has nobody to join")
