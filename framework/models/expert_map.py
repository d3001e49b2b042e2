"""Where experts lie: which expert each slot of each rank holds, and slots that even out the loads.

An expert is in one slot or in several (replicas); a rank's slots follow each other, and all ranks have as many. The balancing is
that of DeepSeek's EPLB (github.com/deepseek-ai/EPLB) without its groups of nodes: the heaviest experts are replicated, and what
there is then packed greedily.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import ParallelConfig
from .architecture import Architecture

Slots = tuple[int, ...]
"""The expert in each slot."""
Loads = Mapping[int, Sequence[float]]
"""Layer with experts -> how often each of them was chosen."""


@dataclass(frozen=True)
class ExpertMap:
    """slots of every layer with experts, spread over ``ranks`` ranks."""

    ranks: int
    slots: Mapping[int, Slots]

    @property
    def num_redundant(self) -> int:
        """Slots beyond one for each expert, of a layer."""
        return next((len(own) - len(set(own)) for own in self.slots.values()), 0)

    def of_rank(self, layer: int, rank: int) -> Slots:
        count = len(self.slots[layer]) // self.ranks
        return self.slots[layer][rank * count : (rank + 1) * count]

    def balanced(self, loads: Loads) -> ExpertMap:
        """For these loads. A layer that this map serves as well keeps its slots."""
        slots = {layer: balance(loads[layer], self.ranks, len(own), own) for layer, own in self.slots.items()}
        return ExpertMap(self.ranks, slots)

    def imbalance(self, loads: Loads) -> float:
        """The load of the busiest rank, summed over the layers, which wait for it, over that of the average rank; 1 is best."""
        total = sum(sum(loads[layer]) for layer in self.slots)
        busiest = sum(max(rank_loads(own, loads[layer], self.ranks)) for layer, own in self.slots.items())
        return busiest * self.ranks / total if total else 1.0


def first_map(a: Architecture, parallel: ParallelConfig) -> ExpertMap | None:
    """The map that an engine starts with: of the loads in ``parallel.expert_loads``, else experts in their order, then the first
    ones again. None where they lie in their order for good. Raises ValueError for loads that are of another model."""
    if parallel.ep == 1 or not (parallel.eplb or parallel.redundant_experts or parallel.expert_loads):
        return None
    counts = {layer: shape.moe.num_experts for layer, shape in enumerate(a.layers) if shape.moe is not None}
    slots = {layer: tuple(i % count for i in range(count + parallel.redundant_experts)) for layer, count in counts.items()}
    ordered = ExpertMap(parallel.ep, slots)
    return ordered.balanced(read_loads(parallel.expert_loads, counts)) if parallel.expert_loads else ordered


def balance(loads: Sequence[float], ranks: int, num_slots: int, current: Slots | None = None) -> Slots:
    """Slots whose busiest rank has the least to do, of: replicas of the heaviest experts, packed; every expert once, packed, and
    slots that remain filled with more of what their rank has, so that replicas never make anything worse; ``current``, which stays
    if no other is better. A replica takes its part of its expert's load. num_slots: a multiple of ranks, and as many as experts or
    more; experts: as many as ranks or more."""
    once, size = [1] * len(loads), num_slots // ranks
    found = [pack(loads, replicas(loads, num_slots, ranks), ranks, size), pack(loads, once, ranks, size)]
    found.append(pack(loads, once, ranks, size, room=-(-len(loads) // ranks)))
    return min([current, *found] if current else found, key=lambda slots: max(rank_loads(slots, loads, ranks)))


def replicas(loads: Sequence[float], num_slots: int, ranks: int) -> list[int]:
    """How many slots each expert gets: at least one, at most one per rank; the next goes to where a slot has the most to do."""
    counts, heap = [1] * len(loads), [(-load, expert) for expert, load in enumerate(loads)]
    heapq.heapify(heap)
    for _ in range(num_slots - len(loads)):
        _, expert = heapq.heappop(heap)
        counts[expert] += 1
        if counts[expert] < ranks:
            heapq.heappush(heap, (-loads[expert] / counts[expert], expert))
    return counts


def pack(loads: Sequence[float], counts: Sequence[int], ranks: int, size: int, room: int | None = None) -> Slots:
    """Greedily: the heaviest first, each to the rank with room that has the least to do so far. size: slots of a rank; room: how
    many are packed, beyond which they are filled with more of the same; None: all."""
    room = room or size
    parts = [(loads[expert] / count, expert) for expert, count in enumerate(counts) for _ in range(count)]
    own: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, 0, rank) for rank in range(ranks)]
    for load, expert in sorted(parts, key=lambda part: (-part[0], part[1])):
        total, count, rank = heapq.heappop(heap)
        own[rank].append(expert)
        if count + 1 < room:
            heapq.heappush(heap, (total + load, count + 1, rank))
    return tuple(expert for held in own for expert in sorted(held[i % len(held)] for i in range(size)))


def rank_loads(slots: Slots, loads: Sequence[float], ranks: int) -> list[float]:
    """What each rank has to do."""
    counts, size = Counter(slots), len(slots) // ranks
    return [sum(loads[e] / counts[e] for e in slots[rank * size : (rank + 1) * size]) for rank in range(ranks)]


def write_loads(path: str | Path, loads: Loads) -> None:
    """A file for ``parallel.expert_loads``."""
    Path(path).write_text(json.dumps({"expert_loads": {str(layer): list(of_layer) for layer, of_layer in loads.items()}}))


def read_loads(path: str | Path, counts: Mapping[int, int]) -> Loads:
    """counts: experts of each layer that has some. Raises ValueError for a file that is missing, or of another model."""
    try:
        found = json.loads(Path(path).read_text())["expert_loads"]
        loads = {int(layer): [float(load) for load in of_layer] for layer, of_layer in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"parallel.expert_loads={str(path)!r} cannot be read ({type(error).__name__}: {error}); "
            "Engine.expert_loads and write_loads of framework.models.expert_map make such a file"
        ) from error
    sizes = {layer: len(of_layer) for layer, of_layer in loads.items()}
    if sizes != dict(counts) or any(not 0 <= load < float("inf") for of_layer in loads.values() for load in of_layer):
        raise ValueError(
            f"parallel.expert_loads={str(path)!r} is of another model: it has loads of {_told(sizes)}; this model has "
            f"{_told(counts)}, and a load is 0 or more"
        )
    return loads


def _told(counts: Mapping[int, int]) -> str:
    sizes = ", ".join(map(str, sorted(set(counts.values())))) or "no"
    return f"{sizes} experts in {len(counts)} layers"
