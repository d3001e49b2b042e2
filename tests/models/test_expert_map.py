"""Slots of experts against all placements there are, in small cases, and by what holds for every one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.config import ModelConfig, ParallelConfig
from framework.models.architecture import Architecture
from framework.models.expert_map import ExpertMap, Slots, balance, first_map, pack, rank_loads, read_loads, replicas, write_loads
from framework.models.read import read_model

from ..framework.models.checkpoints import make
from .examples import EXAMPLES


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Loads, ranks, slots."""
    ranks = draw(st.integers(1, 6))
    loads = draw(st.lists(st.integers(0, 1000), min_size=ranks, max_size=4 * ranks))
    most = len(loads) * ranks
    each = draw(st.integers(-(-len(loads) // ranks), most // ranks))
    return loads, ranks, each * ranks


def busiest(slots: Slots, loads: Sequence[float], ranks: int) -> float:
    """Counted slot by slot: every replica of an expert takes its turn."""
    size, totals, counts = len(slots) // ranks, [0.0] * ranks, Counter(slots)
    for slot, expert in enumerate(slots):
        totals[slot // size] += loads[expert] / counts[expert]
    return max(totals)


@settings(deadline=None)
@given(cases())
def test_every_expert_has_a_slot_and_replicas_make_nothing_worse(case: tuple[list[int], int, int]) -> None:
    loads, ranks, num_slots = case
    slots = balance(loads, ranks, num_slots)
    assert len(slots) == num_slots and set(slots) == set(range(len(loads)))
    most = busiest(slots, loads, ranks)
    fewest, once = -(-len(loads) // ranks), [1] * len(loads)
    assert most <= busiest(pack(loads, once, ranks, fewest), loads, ranks) + 1e-9
    assert most <= busiest(pack(loads, once, ranks, num_slots // ranks), loads, ranks) + 1e-9
    assert most == pytest.approx(max(rank_loads(slots, loads, ranks)))
    assert most >= sum(loads) / ranks - 1e-9
    assert balance(loads, ranks, num_slots, slots) == slots
    copies = replicas(loads, num_slots, ranks)
    assert sum(copies) == num_slots and all(1 <= count <= ranks for count in copies)


@settings(deadline=None)
@given(cases(), st.randoms())
def test_a_map_that_serves_stays(case: tuple[list[int], int, int], random: object) -> None:
    """Another is taken only where it is better."""
    loads, ranks, num_slots = case
    current = tuple(i % len(loads) for i in range(num_slots))
    found = balance(loads, ranks, num_slots, current)
    assert found == current or busiest(found, loads, ranks) < busiest(current, loads, ranks)


def best(loads: Sequence[float], ranks: int, num_slots: int) -> float:
    """Of all placements."""
    experts = range(len(loads))
    found = float("inf")
    for added in combinations_with_replacement(experts, num_slots - len(loads)):
        for slots in set(permutations([*experts, *added])):
            found = min(found, busiest(slots, loads, ranks))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_it_is_near_the_best_of_all_placements(seed: int) -> None:
    """Graham's bound of the greedy order, 4/3 - 1/(3 ranks), and usually the best itself."""
    import random

    rng = random.Random(seed)
    for num_experts, ranks, num_slots in ((4, 2, 4), (4, 2, 6), (3, 3, 6), (5, 2, 6), (6, 3, 6), (3, 2, 6)):
        loads = [rng.choice([1, 2, 3, 5, 8, 50]) for _ in range(num_experts)]
        assert busiest(balance(loads, ranks, num_slots), loads, ranks) <= (4 / 3) * best(loads, ranks, num_slots) + 1e-9


def test_the_heaviest_is_replicated_and_spread() -> None:
    """Load 12 of one expert: three ranks share it."""
    slots = balance([12, 1, 1, 1], 3, 6)
    assert Counter(slots) == {0: 3, 1: 1, 2: 1, 3: 1} and rank_loads(slots, [12, 1, 1, 1], 3) == [5.0] * 3
    assert pack([4, 3, 2, 1], [1, 1, 1, 1], 2, 2) == (0, 3, 1, 2)


def test_loads_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    write_loads(path, {1: [3, 0, 5], 2: [1, 1, 1]})
    assert read_loads(path, {1: 3, 2: 3}) == {1: [3, 0, 5], 2: [1, 1, 1]}
    with pytest.raises(
        ValueError, match="of another model: it has loads of 3 experts in 2 layers; this model has 4 experts in 2 layers"
    ):
        read_loads(path, {1: 4, 2: 4})
    for text in ("{}", "[]", "nothing", '{"expert_loads": 3}', '{"expert_loads": {"x": [1]}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"parallel.expert_loads=.*loads.json' cannot be read .*write_loads"):
            read_loads(path, {1: 3})
    path.write_text('{"expert_loads": {"1": [NaN, 1, 1]}}')
    with pytest.raises(ValueError, match="a load is 0 or more"):
        read_loads(path, {1: 3})


def architecture(name: str, folder: Path) -> Architecture:
    make(EXAMPLES[name], folder)
    found = read_model(ModelConfig(str(folder), dtype="float32")).architecture
    assert found is not None
    return found


def test_the_first_map_is_in_order_or_of_recorded_loads(tmp_path: Path) -> None:
    a = architecture("qwen3-moe", tmp_path)
    layers = {i: layer.moe.num_experts for i, layer in enumerate(a.layers) if layer.moe is not None}
    count = next(iter(layers.values()))
    assert first_map(a, ParallelConfig(tp=2, ep=2)) is None
    found = first_map(a, ParallelConfig(tp=2, ep=2, redundant_experts=2))
    assert found is not None and set(found.slots) == set(layers)
    assert all(slots == (*range(count), 0, 1) for slots in found.slots.values()) and found.num_redundant == 2
    loads = {layer: [1.0] * (count - 1) + [100.0] for layer in layers}
    write_loads(tmp_path / "loads.json", loads)
    uneven = first_map(a, ParallelConfig(tp=2, ep=2, redundant_experts=2, expert_loads=str(tmp_path / "loads.json")))
    assert uneven is not None and uneven.imbalance(loads) < 1.05 < found.imbalance(loads)


def test_imbalance_is_of_the_busiest_rank() -> None:
    placed = ExpertMap(2, {0: (0, 1, 2, 3), 3: (0, 1, 2, 3)})
    assert placed.imbalance({0: [1, 1, 1, 1], 3: [1, 1, 1, 1]}) == 1 == placed.imbalance({0: [0] * 4, 3: [0] * 4})
    assert placed.imbalance({0: [4, 0, 0, 0], 3: [0, 0, 0, 4]}) == 2
    assert replace(placed, slots={0: (0, 2, 1, 3)}).imbalance({0: [2, 2, 0, 0]}) == 1
    assert placed.of_rank(3, 1) == (2, 3)
