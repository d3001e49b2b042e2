"""What the filters of the Triton ``sample`` keep, token for token against a sort in float64, and how many steps of ``choose`` wait
for each other, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from triton_kernels.impls.sample import _filters, _guesses, _keys, _scan
from triton_kernels.impls.sample import triton as sample_triton
from triton_kernels.ops.sampling import near_ties, sample_reference
from triton_kernels.registry import Registry

VOCAB = 128256
INF = float("inf")
SMALL = {"block": 256, "group": 8, "sets": 16, "tile": 256, "survivors": 64}


def arguments(logits: torch.Tensor, **filters: Any) -> dict[str, Any]:
    """Arguments of ``sample`` with one seat per row, all with the same filters."""
    rows = len(logits)
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    args: dict[str, Any] = {name: torch.full((rows,), float(value)) for name, value in given.items()}
    args |= {"logits": logits, "row_to_seat": torch.arange(rows, dtype=torch.int32), "top_k": args["top_k"].int()}
    return args | {"seed": torch.arange(rows) - 3, "position": 7 + torch.arange(rows), "stream": 0}


def kept_by_sort(row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    scores = (row.float() / torch.tensor(temperature)).double().numpy()
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    kept = ranked > -INF
    if min_p > 0:
        kept &= ranked >= ranked[0] + np.log(np.float64(np.float32(min_p)))
    if top_k > 0:
        kept[top_k:] = False
    if top_p < 1:
        mass = np.where(kept, np.exp(ranked - ranked[0]), 0.0)
        kept &= np.cumsum(mass) - mass < np.float64(np.float32(top_p)) * mass.sum()
    kept[0] = True
    return set(order[kept].tolist())


@triton.jit
def _kept_kernel(
    logits_ptr,
    groups_ptr,
    border_ptr,
    list_ptr,
    num_tokens,
    num_groups,
    temperature,
    top_k,
    top_p_ptr,
    min_p_ptr,
    SETS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    SURVIVORS: tl.constexpr,
):
    groups = (groups_ptr, num_groups)
    group_best, group_mass, _ = _keys.load_groups(groups, GROUPS, GROUP)
    best = tl.max(group_best, 0)
    row = (logits_ptr, num_tokens, tl.load(temperature), best)
    mass = _keys.row_mass(group_best, group_mass, best)
    lower, upper, tokens_ptr, num_listed, _ = _filters.find_border(
        row, groups, mass, tl.load(top_k), tl.load(top_p_ptr), tl.load(min_p_ptr), SETS, GROUPS, GROUP, TILE, SURVIVORS
    )
    tl.store(border_ptr, lower)
    tl.store(border_ptr + 1, upper)
    tl.store(border_ptr + 2, num_listed.to(tl.int64))
    at = tl.arange(0, SETS)
    tl.store(list_ptr + at, tl.load(tokens_ptr + at, mask=at < num_listed, other=-1))


def kept_by_kernel(row: torch.Tensor, options: dict[str, int], **filters: Any) -> set[int]:
    args = arguments(row[None], **filters)
    num_tokens, group = len(row), options["group"]
    block = max(group, min(options["block"], triton.next_power_of_2(num_tokens)))
    num_blocks = triton.cdiv(num_tokens, block)
    num_groups = num_blocks * (block // group)
    groups = torch.zeros(1, 3 * num_groups + 4 * options["survivors"], dtype=torch.int32)
    names = ("logits", "row_to_seat", "temperature", "top_k", "top_p", "min_p", "seed", "position")
    _scan.scan_kernel[(1, num_blocks)](
        *(args[name] for name in names),
        torch.zeros(1, num_blocks, dtype=torch.int32),
        groups,
        num_tokens,
        num_tokens,
        groups.stride(0),
        0,
        GROUP=group,
        BLOCK=block,
    )
    border, listed = torch.zeros(3, dtype=torch.int64), torch.zeros(options["sets"], dtype=torch.int32)
    sizes = {"SETS": options["sets"], "GROUPS": max(options["sets"], triton.next_power_of_2(num_groups)), "GROUP": group}
    sizes |= {"TILE": options["tile"], "SURVIVORS": options["survivors"]}
    parameters = (args["temperature"], args["top_k"], args["top_p"], args["min_p"])
    _kept_kernel[(1,)](row, groups, border, listed, num_tokens, num_groups, *parameters, **sizes)
    lower, upper, num_listed = border.tolist()
    keys = keys_of(row.float() / args["temperature"][0])
    kept = np.flatnonzero(keys >= upper).tolist() + [t for t in listed[:num_listed].tolist() if keys[t] >= lower]
    return {token for token in kept if row[token] > -INF}


def keys_of(scores: torch.Tensor) -> np.ndarray:
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32).long().numpy()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) * 2**32 + 0x7FFFFFFF - np.arange(len(scores))


def random_row(random: np.random.Generator, num_tokens: int) -> torch.Tensor:
    """Flat, peaked, of few values, one-hot, or mostly masked."""
    kind = random.integers(6)
    row = random.standard_normal(num_tokens) * random.choice([0.01, 1.0, 3.0, 8.0])
    if kind == 1:
        row = np.round(row)
    elif kind == 2:
        row = np.full(num_tokens, random.standard_normal())
    elif kind == 3:
        row = np.where(np.arange(num_tokens) == random.integers(num_tokens), 30.0, 0.0)
    elif kind == 4:
        row = np.where(random.random(num_tokens) < 0.9, -INF, row)
        row[random.integers(num_tokens)] = 0.5
    return torch.from_numpy(row).to([torch.float32, torch.float16][random.integers(2)])


@pytest.mark.parametrize("seed", range(5))
def test_the_kept_tokens_are_those_of_a_sort(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(8):
        row = random_row(random, int(random.choice([1, 7, 64, 333, 1001])))
        filters = {
            "temperature": float(random.choice([0.5, 1.0, 2.0])),
            "top_k": int(random.choice([0, 1, 5, 40, 200])),
            "top_p": float(random.choice([1.0, 0.001, 0.5, 0.93])),
            "min_p": float(random.choice([0.0, 0.0, 0.07])),
        }
        assert kept_by_kernel(row, SMALL, **filters) == kept_by_sort(row, **filters), (len(row), filters)


@pytest.mark.parametrize("kind", ["equal", "head"])
@pytest.mark.parametrize(
    "filters", [{"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}, {"top_k": 5000}, {"top_p": 0.5, "min_p": 0.1}], ids=str
)
def test_the_kept_tokens_of_a_large_vocabulary(kind: str, filters: dict[str, float]) -> None:
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    row = large_row(kind, 1)
    options = sample_options()
    got, expected = kept_by_kernel(row, options, **filters), kept_by_sort(row, **(defaults | filters))
    assert got == expected, (len(got), len(expected))


def large_row(kind: str, seed: int) -> torch.Tensor:
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "equal":
            return torch.zeros(VOCAB)
        case "narrow":
            return 0.01 * row
        case "half":
            return row.bfloat16().float().half()
        case "head":
            row[100:120] += 8
    return row


def sample_options() -> dict[str, int]:
    return dict(Registry.load().impls("sample")["triton"].options)


class Steps:
    """Counts, while ``choose`` runs, tiles loaded and reduced, and decisions between keys; those of one row wait for each other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0.0
        self.monkeypatch = monkeypatch
        for module in (_filters, _guesses):
            self.wrap(module, "load_groups", 1)
            self.wrap(module, "load_list", 1)
            self.wrap(module, "sums_from", 1)
        self.wrap(_filters, "sample_groups", 1)  # its tile of tokens, beside that of groups
        self.wrap(_filters, "_weigh", 0.25)  # the parts of a tile, loaded and reduced at once
        self.wrap(sample_triton, "load_groups", 1)
        self.wrap(sample_triton, "load_list", 1)
        self.wrap(sample_triton, "load_part", 1)

    def wrap(self, module: Any, name: str, weight: float) -> None:
        function = getattr(module, name)

        def counted(*args: Any, **keywords: Any) -> Any:
            self.count += weight
            return function(*args, **keywords)

        self.monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize(("filters", "most"), [({"top_k": 50, "top_p": 0.9}, 24), ({"top_p": 0.9}, 64)], ids=str)
@pytest.mark.parametrize("kind", ["normal", "equal", "narrow", "half", "head"])
def test_few_steps_wait_for_each_other(kind: str, filters: dict[str, float], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    impl = Registry.load().impls("sample")["triton"]
    args = arguments(large_row(kind, 2)[None], **filters)
    steps = Steps(monkeypatch)
    token = impl.target(**args, **impl.options)
    assert 4 <= steps.count <= most
    assert bool((token == sample_reference(**args)) | near_ties(args))


@pytest.mark.parametrize("change", [lambda row: row, lambda row: row.half()], ids=["float32", "float16"])
def test_a_token_depends_on_neither_the_batch_nor_the_logits_type(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    logits = (2 * torch.randn(3, 1501, generator=torch.Generator().manual_seed(5))).half().float()
    options = {"block": 512, "group": 16, "sets": 64, "tile": 1024, "survivors": 256}
    filters: list[dict[str, Any]] = [{}, {"top_k": 300, "top_p": 0.9}, {"top_p": 0.95}]
    for given in filters:
        args = arguments(logits, **given)
        whole = sample_triton.sample.target(**args, **options)
        for row in range(3):
            names = ("logits", "row_to_seat", "position")
            alone = args | {name: args[name][row : row + 1] for name in names}
            alone["logits"] = change(alone["logits"])
            assert int(sample_triton.sample.target(**alone, **options)) == int(whole[row])
