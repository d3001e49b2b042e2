"""Where the experts of a mixture lie among the ranks, and when they move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..models.expert_map import ExpertMap
from .messages import Place

Loads = dict[int, list[int]]
"""As ``Engine.expert_loads`` has them."""


class MovingExperts:
    """Experts that move to where the loads are even. every: steps after which they do so by themselves; 0 = never.

    map  where they are
    """

    def __init__(self, first: ExpertMap, every: int) -> None:
        self.map, self._every = first, every
        self._num_steps = 0

    def is_due(self) -> bool:
        """Counts a step; whether they are to move before it."""
        self._num_steps += 1
        return self._every > 0 and self._num_steps % self._every == 0

    def balance(self, loads: Loads) -> tuple[float, float]:
        """Changes ``map``; returns the imbalance before and after, as ``ExpertMap.imbalance`` has it."""
        before, self.map = self.map, self.map.balanced(loads)
        return before.imbalance(loads), self.map.imbalance(loads)


def total_loads(places: Sequence[Place], found: Mapping[int, Loads]) -> Loads:
    """Of all ranks. found: by rank, what each computed; those of a stage compute the same."""
    total: Loads = {}
    for place in places:
        for layer, loads in found[place.rank].items() if place.tp_rank == 0 else ():
            total[layer] = [a + b for a, b in zip(total.get(layer, [0] * len(loads)), loads)]
    return total
