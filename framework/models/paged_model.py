"""What models have in common whose layers attend over the paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..engine.kv_cache.spec import CacheGroup, PagedKV, State
from .batch import ForwardBatch
from .expert_balancer import ExpertBalancer
from .layers.experts import Lockstep
from .layers.mixers import LayerStates
from .layers.paged_attention import PagedAttention
from .lora.slots import LoraSlots


class PagedModel:
    """The part of ``Model`` that is about the cache. layers: what each attends with, or keeps states in, in order."""

    decides_on_host = False
    is_last = True
    num_unscored = 0
    lora: LoraSlots | None = None
    lockstep: Lockstep | None = None
    balancer: ExpertBalancer | None = None

    def __init__(self, layers: Sequence[PagedAttention | LayerStates]) -> None:
        self._attention = {index: layer for index, layer in enumerate(layers) if isinstance(layer, PagedAttention)}
        self._states = {index: layer.spec for index, layer in enumerate(layers) if isinstance(layer, LayerStates)}
        self._first_of_groups = list(self._attention.values())[:1]

    @property
    def attention(self) -> Mapping[int, PagedAttention]:
        """Of the layers that attend, by their number in this process."""
        return self._attention

    def cache_specs(self) -> list[PagedKV | None]:
        """What each layer keeps in the cache; None: nothing."""
        attends, count = self._attention, len(self._attention) + len(self._states)
        return [attends[index].spec if index in attends else None for index in range(count)]

    def state_specs(self) -> dict[int, State]:
        """What layers keep of a request beside the cache."""
        return self._states

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
