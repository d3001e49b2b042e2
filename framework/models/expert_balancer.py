"""Moves the experts of a model that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ..plan import BoundKernel, KernelPlan
from .expert_map import ExpertMap
from .layers.experts import Placement, SpreadExperts


@dataclass
class ExpertBalancer:
    """Of one rank. layers: those of this process, by their number in the model; load: reads the experts of a layer that this rank
    has by a map, and binds them."""

    rank: int
    map: ExpertMap
    layers: Mapping[int, SpreadExperts]
    plan: KernelPlan
    load: Callable[[int, ExpertMap], BoundKernel]

    def loads(self) -> dict[int, list[int]]:
        """Layer -> how often each expert was chosen by this rank's rows so far. Waits for the device."""
        return {number: placement_of(layer).loads.tolist() for number, layer in self.layers.items()}

    @torch.inference_mode()
    def move(self, wanted: ExpertMap) -> int:
        """Reads the layers that are to be another here, one by one, and drops what they were before; counts begin again. Returns
        how many these were."""
        changed = [n for n in self.layers if wanted.of_rank(n, self.rank) != self.map.of_rank(n, self.rank)]
        for number in changed:
            self.plan.rebind(self.layers[number].experts, partial(self.load, number, wanted))
        for number, layer in self.layers.items():
            placement = placement_of(layer)
            placement.loads.zero_()
            placement.place(wanted.slots[number])
        self.map = wanted
        return len(changed)


def placement_of(layer: SpreadExperts) -> Placement:
    assert layer.placement is not None, "a layer whose experts can move has one"
    return layer.placement
