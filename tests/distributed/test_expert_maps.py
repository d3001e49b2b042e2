"""Experts that lie anywhere, some several times, and move while a model runs: logits stay those of the whole model, bit by bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from framework.config import ModelConfig
from framework.models.decoder import Decoder
from framework.models.expert_map import ExpertMap
from framework.models.parallel import Parallel, Ranks
from framework.models.read import read_model
from triton_kernels.group import ThreadGroup

from ..framework.models.checkpoints import make
from ..framework.models.harness import Session, build, sequences
from ..models.examples import EXAMPLES
from ..thread_ranks import run_ranks

REFERENCE = {"default": "reference"}
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PROMPTS = [[t % 29 + 2 for t in s] for s in sequences((19, 7))]
STEPS = [[(0, PROMPTS[0][:9]), (1, PROMPTS[1][:6])], [(1, PROMPTS[1][6:]), (0, PROMPTS[0][9:])]]


def experts_of(config: ModelConfig) -> dict[int, int]:
    """Of each layer that has some."""
    found = read_model(config).architecture
    assert found is not None
    return {i: layer.moe.num_experts for i, layer in enumerate(found.layers) if layer.moe is not None}


def shuffled(counts: dict[int, int], ranks: int, redundant: int, seed: int) -> ExpertMap:
    rng, slots = random.Random(seed), {}
    for layer, count in counts.items():
        own = [*range(count), *rng.choices(range(count), k=redundant)]
        rng.shuffle(own)
        slots[layer] = tuple(own)
    return ExpertMap(ranks, slots)


def parallel(group: ThreadGroup, experts: ExpertMap) -> Parallel:
    ranks = Ranks(group.rank, group.size, group)
    return Parallel(tp=ranks, ep=ranks, experts=experts)


def logits(config: ModelConfig, of: Parallel | None = None) -> torch.Tensor:
    session = Session(build(config, REFERENCE, parallel=of), 2)
    return torch.cat([found for rows in STEPS for found in session.step(rows)])


@pytest.mark.parametrize(("name", "size", "redundant", "dtype"), [
    ("mixtral", 2, 2, "float32"), ("mixtral", 2, 0, "bfloat16"), ("qwen3-moe", 4, 4, "float32"), ("qwen3-moe", 2, 2, "bfloat16"),
    ("deepseek-v3", 2, 2, "float32"), ("gpt-oss", 2, 4, "float32"), ("llama4", 2, 2, "float32"),
])  # fmt: skip
def test_logits_are_those_of_the_whole_model_wherever_experts_lie(
    name: str, size: int, redundant: int, dtype: str, tmp_path: Path
) -> None:
    make(EXAMPLES[name], tmp_path)
    config = ModelConfig(str(tmp_path), dtype=dtype)
    counts = experts_of(config)
    redundant += -(next(iter(counts.values())) + redundant) % size
    placed = shuffled(counts, size, redundant, seed=1)
    expected = logits(config)
    for found in run_ranks(size, lambda group: logits(config, parallel(group, placed))):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["ct_mixtral_w4a16", "gptq_moe"])
def test_quantized_experts_lie_anywhere_too(name: str) -> None:
    config = ModelConfig(str(CHECKPOINTS / name), dtype="float32", max_model_len=64)
    placed = shuffled(experts_of(config), 2, 2, seed=2)
    expected = logits(config)
    for found in run_ranks(2, lambda group: logits(config, parallel(group, placed))):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_move_between_steps(name: str, tmp_path: Path) -> None:
    """And are counted meanwhile: as often as every token chooses them."""
    make(EXAMPLES[name], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32")
    counts, expected = experts_of(config), logits(config)
    maps = [shuffled(counts, 2, 2, seed) for seed in range(3)]

    def moved(group: ThreadGroup) -> tuple[torch.Tensor, list[dict[int, list[int]]], int]:
        model = build(config, REFERENCE, parallel=parallel(group, maps[0]))
        assert isinstance(model, Decoder) and model.balancer is not None
        session, found, loads = Session(model, 2), [], []
        kernels = len(model.balancer.plan.bound)
        for rows, wanted in zip(STEPS, maps[1:]):
            found += session.step(rows)
            loads.append(model.balancer.loads())
            model.balancer.move(wanted)
        assert len(model.balancer.plan.bound) == kernels and model.balancer.map == maps[-1]
        return torch.cat(found), loads, model.balancer.move(maps[-1])

    results = run_ranks(2, moved)
    assert all(torch.equal(found, expected) for found, *_ in results)
    assert [again for *_, again in results] == [0, 0]
    architecture = read_model(config).architecture
    assert architecture is not None
    of_ranks = [loads for _, loads, _ in results]
    assert of_ranks[0] == of_ranks[1]
    for rows, loads in zip(STEPS, of_ranks[0]):
        num_tokens = sum(len(tokens) for _, tokens in rows)
        for layer, of_layer in loads.items():
            moe = architecture.layers[layer].moe
            assert moe is not None
            assert len(of_layer) == counts[layer] and sum(of_layer) == num_tokens * moe.top_k


def test_replicas_take_turns() -> None:
    from framework.models.layers.experts import Placement

    placement = Placement((0, 1, 2, 0, 3, 0), 4, 3, first=0, device=torch.device("cpu"))
    slots = placement(torch.tensor([[0, 1], [0, 2], [0, 3], [0, 0]], dtype=torch.int32))
    assert slots.tolist() == [[0, 1], [3, 2], [5, 4], [0, 0]] and slots.dtype == torch.int32
    assert placement.loads.tolist() == [5, 1, 1, 1]
    later = Placement((0, 1, 2, 0, 3, 0), 4, 3, first=1, device=torch.device("cpu"))
    assert later(torch.tensor([[0]], dtype=torch.int32)).tolist() == [[3]]
    placement.place((3, 2, 1, 0, 0, 0))
    assert placement(torch.tensor([[3, 1]], dtype=torch.int32)).tolist() == [[0, 2]]
