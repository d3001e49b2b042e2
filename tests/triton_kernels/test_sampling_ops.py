"""Sampling ops: distributions, what filters keep, seeds, broken rows and formulas, against numpy and plain arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from triton_kernels.impls.apply_penalties.native import ApplyPenaltiesNative as native_penalties
from triton_kernels.impls.apply_penalties.torch import apply_penalties
from triton_kernels.impls.gather_logprobs.torch import gather_logprobs
from triton_kernels.impls.sample import torch as sample_torch
from triton_kernels.lab import calls
from triton_kernels.ops.penalties import apply_penalties as penalties_op
from triton_kernels.ops.penalties import pack_bits, unpack_bits
from triton_kernels.ops.penalties import reference as penalties_reference
from triton_kernels.ops.sampling import gather_logprobs_reference, near_ties, sample_reference
from triton_kernels.ops.sampling import sample as sample_op
from triton_kernels.rng import gumbel_noise
from triton_kernels.spec import Spec

SAMPLERS = [sample_reference, sample_torch.sample.target]
LOGPROBS = [gather_logprobs_reference, gather_logprobs.target]
PENALTIES = [
    penalties_reference,
    apply_penalties.target,
    pytest.param(lambda *args: native_penalties.bind(Spec("cpu", "cpu", torch.float32))(*args), id="native"),
]
SEAT_ARGS = ("prompt_mask", "output_counts", "repetition", "frequency", "presence", "bias_ids", "bias_values")
INF, NAN = float("inf"), float("nan")


def arguments(logits: torch.Tensor, seats: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
    """Arguments of ``sample``; every parameter is a number for all seats or a list with one per seat."""
    seats = list(range(len(logits))) if seats is None else seats
    num_seats = max(*seats, 0) + 1 if len(seats) > 1 else seats[0] + 1
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
    dtypes = {"top_k": torch.int32, "seed": torch.int64}
    position = torch.as_tensor(parameters.pop("position", [5] * len(logits)))
    out = {}
    for name, value in (defaults | parameters).items():
        values = list(value) if isinstance(value, (list, range)) else [value] * num_seats
        out[name] = torch.tensor(values, dtype=dtypes.get(name, torch.float32))
    return {"logits": logits, "row_to_seat": torch.tensor(seats, dtype=torch.int32), **out, "position": position, "stream": 0}


def draws(logits: torch.Tensor, num: int, **parameters: Any) -> torch.Tensor:
    """Tokens that the torch impl draws from one row of logits at ``num`` positions."""
    rows = logits.expand(num, -1)
    return sample_torch.sample.target(**arguments(rows, [0] * num, position=torch.arange(num), **parameters))


def kept_tokens(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> list[int]:
    """What the filters keep, one token after the other."""
    scores = (logits.astype(np.float32) / np.float32(temperature)).astype(np.float64)
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    ranked = [t for t in ranked if min_p == 0 or scores[t] >= scores[ranked[0]] + np.log(min_p)]
    ranked = ranked[: top_k or None]
    weights = np.exp(scores[ranked] - scores[ranked[0]])
    kept, reached = [], 0.0
    for token, weight in zip(ranked, weights, strict=True):
        kept.append(token)
        reached += weight / weights.sum()
        if reached >= top_p:
            break
    return kept


def chi_square(tokens: torch.Tensor, probability: np.ndarray) -> tuple[float, float]:
    """The statistic, and its 0.9999 quantile (Wilson and Hilferty's approximation)."""
    seen, expected = np.bincount(tokens.numpy(), minlength=len(probability)), len(tokens) * probability
    possible = expected > 0
    freedom = possible.sum() - 1
    assert seen[~possible].sum() == 0
    statistic = float(((seen - expected)[possible] ** 2 / expected[possible]).sum())
    return statistic, freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "seed": 99},
        {"top_k": 6},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_tokens_have_the_distribution_of_the_softmax(parameters: dict[str, Any]) -> None:
    logits = 1.5 * torch.randn(16, generator=torch.Generator().manual_seed(3))
    tokens = draws(logits, 20000, **parameters)
    filters: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | parameters
    filters.pop("seed", None)
    kept = kept_tokens(logits.numpy(), **filters)
    probability = np.zeros(16)
    probability[kept] = np.exp(logits.numpy()[kept].astype(float) / filters["temperature"])
    statistic, limit = chi_square(tokens, probability / probability.sum())
    assert statistic < limit
    assert set(tokens.tolist()) == set(kept)


@pytest.mark.parametrize("num_tokens", [3, 50, 700])
def test_filters_keep_exactly_the_right_tokens(num_tokens: int) -> None:
    """The kept set shows as the set of winners when many positions are drawn from scores with ties."""
    random = np.random.default_rng(num_tokens)
    for trial in range(12):
        logits = np.round(2 * random.standard_normal(num_tokens)).astype(np.float32) / 2
        filters: dict[str, Any] = {
            "temperature": float(random.choice([0.7, 1.0, 3.0])),
            "top_k": int(random.choice([0, 1, 5, num_tokens])),
            "top_p": float(random.choice([1.0, 0.5, 0.93])),
            "min_p": float(random.choice([0.0, 0.07])),
        }
        kept = kept_tokens(logits, **filters)
        tokens = set(draws(torch.from_numpy(logits), 400, seed=trial, **filters).tolist())
        assert tokens <= set(kept), filters
        if len(kept) <= 5:
            assert tokens == set(kept) or trial_is_unlikely(logits[kept] / filters["temperature"], 400), filters


def trial_is_unlikely(scores: np.ndarray, num: int) -> bool:
    """Whether some kept token is so improbable that it may be missing from ``num`` draws."""
    probability = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    return bool(probability.min() * num < 12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ties_go_to_the_lower_token(sampler: Any) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0, -INF]]).expand(200, -1)
    position = torch.arange(200)
    assert set(sampler(**arguments(logits, [0] * 200, temperature=0.0, position=position)).tolist()) == {1}
    assert set(sampler(**arguments(logits, [0] * 200, top_k=2, position=position)).tolist()) == {1, 3}
    assert set(sampler(**arguments(logits, [0] * 200, top_p=0.5, position=position)).tolist()) == {1, 3}
    assert set(sampler(**arguments(logits, [0] * 200, min_p=1.0, position=position)).tolist()) == {1, 3, 4}
    assert set(sampler(**arguments(logits, [0] * 200, top_p=1e-6, position=position)).tolist()) == {1}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.2}], ids=str)
def test_broken_rows_give_minus_one_and_harm_no_other(sampler: Any, filters: dict[str, Any]) -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    whole = sampler(**arguments(logits, **filters))
    broken = logits.clone()
    broken[1, 7], broken[2], broken[3, 49], broken[4] = NAN, -INF, INF, NAN
    got = sampler(**arguments(broken, [0, 1, 2, 3, 4, -1, 6], **filters))
    assert got.tolist() == [int(whole[0]), -1, -1, -1, -1, -1, int(whole[6])]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_token_depends_on_its_own_row_only(sampler: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(9, 300, generator=generator)
    parameters: dict[str, Any] = {
        "temperature": [1.0, 0.0, 0.8, 1.2, 1.0, 1.0, 2.0, 1.0, 0.5],
        "top_k": [0, 0, 20, 0, 0, 290, 7, 0, 0],
        "top_p": [1.0, 1.0, 1.0, 0.9, 1.0, 0.99, 0.5, 0.97, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.01, 0.0],
        "seed": [3, 1, 4, 1, -5, 9, 2**62, 6, 5],
    }
    position = torch.arange(9) * 2**31
    whole = sampler(**arguments(logits, position=position, **parameters))
    for rows in ([4], [8, 0], [6, 6, 3, 2, 5], [7, 1]):
        part = sampler(**arguments(logits[rows], rows, position=position[rows], **parameters))
        assert part.tolist() == whole[rows].tolist()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_several_rows_of_a_seat_and_far_positions_have_their_own_noise(sampler: Any) -> None:
    logits = torch.zeros(6, 4000)
    position = torch.tensor([7, 8, 7, 7 + 2**32, 7 + 2**33, 7])
    tokens = sampler(**arguments(logits, [0, 0, 0, 0, 0, 1], position=position, seed=[11, 12])).tolist()
    assert tokens[0] == tokens[2]
    assert len({tokens[i] for i in (0, 1, 3, 4, 5)}) == 5


def test_tokens_far_below_the_best_can_win() -> None:
    """A hundred thousand of them, e^-13 as probable as the best each, win one time in five."""
    logits, position = torch.full((20, 100000), -13.0), torch.arange(20)
    logits[:, 77] = 0.0
    got = sample_torch.sample.target(**arguments(logits, [0] * 20, position=position, seed=6))
    expected = (logits + gumbel_noise(torch.full((20,), 6), position, 0, torch.arange(100000))).argmax(-1)
    assert got.tolist() == expected.tolist()
    assert 0 < int((got != 77).sum()) < 20


@pytest.mark.parametrize("filters", [{}, {"top_k": 50}, {"top_p": 0.99}, {"top_k": 3000, "top_p": 0.95}, {"min_p": 0.01}], ids=str)
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_large_vocabularies_agree_with_the_reference(filters: dict[str, Any], spread: float) -> None:
    """Flat rows keep more tokens than are looked at first, steep ones fewer."""
    logits = spread * torch.randn(3, 20011, generator=torch.Generator().manual_seed(4))
    args = arguments(logits, seed=[1, 2, 3], **filters)
    agrees = sample_torch.sample.target(**args) == sample_reference(**args)
    assert bool((agrees | near_ties(args)).all())


def test_the_path_of_gpus_agrees_with_the_reference() -> None:
    """Run here on a CPU: it makes no decision by looking at the data."""
    for case in sample_op.cases:
        if "bench" in case.tags:
            continue
        args = calls.make_args(sample_op, case, torch.float32, torch.device("cpu"))
        random = (args["row_to_seat"] >= 0) & (args["temperature"][args["row_to_seat"].long()] != 0)
        names = ("temperature", "top_k", "top_p", "min_p", "seed")
        per_row = {name: args[name][args["row_to_seat"].long()] for name in names}
        rows = sample_torch._Rows(**per_row, position=args["position"])
        got = sample_torch._draw_dense(args["logits"], rows, 0)
        assert bool(((got == sample_reference(**args)) | ~random | near_ties(args)).all()), case.name


def test_the_cases_hardly_have_near_ties() -> None:
    """So that a wrong impl cannot hide behind them; and a tie that was made is seen."""
    for case in sample_op.cases:
        if "bench" not in case.tags:
            args = calls.make_args(sample_op, case, torch.float32, torch.device("cpu"))
            assert int(near_ties(args).sum()) <= 1, case.name
    made = arguments(torch.tensor([[1.0, 0.5, 0.0]]).expand(50, -1), [0] * 50, position=torch.arange(50))
    made["top_p"] += float(torch.softmax(made["logits"][0].double(), 0)[0]) - 1
    assert 0 < int(near_ties(made).sum()) < 50


def test_no_rows_give_no_tokens() -> None:
    args = arguments(torch.zeros(1, 8)) | {"logits": torch.zeros(0, 8), "row_to_seat": torch.zeros(0, dtype=torch.int32)}
    assert sample_torch.sample.target(**args | {"position": torch.zeros(0, dtype=torch.int64)}).shape == (0,)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_drafts", [0, 1, 40])
def test_penalties_follow_their_formulas(penalties: Any, masked: bool, num_drafts: int) -> None:
    random = np.random.default_rng(8)
    rows, seats, tokens = [2, -1, 0, 2, 1], 3, 70
    logits = random.standard_normal((5, tokens)).astype(np.float32)
    allowed, prompt = random.random((5, tokens)) < 0.7, random.random((seats, tokens)) < 0.3
    counts = random.integers(-2, 4, (seats, tokens)).clip(0)
    repetition, frequency, presence = [1.0, 1.3, 0.6], [0.0, 0.4, -1.0], [0.0, 0.2, 1.5]
    bias = [{}, {3: 5.0, 69: -INF}, {0: 1.0}]
    expected, drafts = logits.copy(), random.integers(-1, tokens, (5, num_drafts))
    for row, seat in enumerate(rows):
        for token in range(tokens) if seat >= 0 else ():
            value = float(logits[row, token]) if allowed[row, token] or not masked else -INF
            value += bias[seat].get(token, 0.0)
            count = counts[seat, token] + drafts[row].tolist().count(token)
            if prompt[seat, token] or count:
                value = value / repetition[seat] if value > 0 else value * repetition[seat]
            value -= frequency[seat] * count
            value -= presence[seat] if count else 0.0
            expected[row, token] = value
    got = torch.from_numpy(logits.copy())
    penalties(
        got,
        torch.tensor(rows, dtype=torch.int32),
        pack_bits(torch.from_numpy(allowed)) if masked else None,
        pack_bits(torch.from_numpy(prompt)),
        torch.from_numpy(counts).int(),
        torch.tensor(repetition),
        torch.tensor(frequency),
        torch.tensor(presence),
        torch.tensor([[*entries, -1, -1][:2] for entries in bias], dtype=torch.int32),
        torch.tensor([[*entries.values(), 7.0, 7.0][:2] for entries in bias]),
        torch.from_numpy(drafts).int() if num_drafts else None,
    )
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_draft_changes_the_bits_that_a_counted_token_changes(penalties: Any) -> None:
    """Or tokens would depend on whether they were guessed."""
    case = next(case for case in penalties_op.cases if case.name == "drafts")
    args = case.make(torch.Generator().manual_seed(4), torch.float32, torch.device("cpu"))
    drafts, seats = args["drafts"], args["row_to_seat"]
    own = {name: args[name][seats.clamp_min(0).long()] for name in SEAT_ARGS}
    for row, before in enumerate(drafts.tolist()):
        for token in before:
            own["output_counts"][row, token] += token >= 0
    counted = torch.where(seats < 0, seats, torch.arange(len(seats), dtype=torch.int32))
    found, expected = args["logits"].clone(), args["logits"].clone()
    penalties(*(args | {"logits": found}).values())
    penalties(*(args | own | {"logits": expected, "row_to_seat": counted, "drafts": None}).values())
    assert torch.equal(found, expected)
    assert not torch.equal(found, args["logits"])


def test_bits_survive_packing() -> None:
    flags = torch.rand(3, 75, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_bits(flags)
    assert packed.dtype == torch.int32 and packed.shape == (3, 3)
    assert int(pack_bits(torch.arange(32) == 31)[0]) == -(2**31)
    assert torch.equal(unpack_bits(packed, 75), flags)


@pytest.mark.parametrize("gather", LOGPROBS)
@pytest.mark.parametrize("num_top", [0, 3, 40])
def test_logprobs_are_those_of_log_softmax(gather: Any, num_top: int) -> None:
    logits = 5 * torch.randn(4, 40, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([0, 39, 7, 7])
    logprob, rank, values, tokens = gather(logits, ids, num_top)
    expected = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(logprob.double(), expected[torch.arange(4), ids], rtol=1e-5, atol=1e-6)
    assert rank.tolist() == [sorted(row.tolist(), reverse=True).index(row[t]) + 1 for row, t in zip(logits, ids, strict=True)]
    best = expected.topk(num_top)
    torch.testing.assert_close(values.double(), best.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(tokens.long(), best.indices)


@pytest.mark.parametrize("gather", LOGPROBS)
def test_logprobs_of_ties_and_broken_rows(gather: Any) -> None:
    logits = torch.zeros(5, 10)
    logits[1, 3], logits[2], logits[3, 5] = NAN, -INF, INF
    logprob, rank, values, tokens = gather(logits, torch.tensor([4, 4, 4, 4, -1]), 3)
    assert float(logprob[0]) == pytest.approx(-np.log(10)) and bool(logprob[1:].isnan().all())
    assert rank.tolist() == [1, 0, 0, 0, 0]
    assert tokens.tolist() == [[0, 1, 2], [-1] * 3, [-1] * 3, [-1] * 3, [0, 1, 2]]
    assert bool(values[1:4].isnan().all()) and bool(values[[0, 4]].isfinite().all())


def test_the_native_greedy_token_is_torchs() -> None:
    """Ties, zeros of both signs, NaN of both signs, infinities, and rows that end inside a vector."""
    from triton_kernels.impls.sample.native import SampleNative

    spec = Spec("cpu", "cpu", torch.float32)
    if SampleNative.unsupported(spec):
        pytest.skip("no C compiler")
    run, generator = SampleNative.bind(spec, {}, {"stream": 0}), torch.Generator().manual_seed(3)
    for size in (1, 15, 16, 17, 1000):
        logits = torch.randint(-3, 2, (40, size), generator=generator).float()
        logits[logits == 0] *= -1
        logits[torch.rand(logits.shape, generator=generator) < 0.2] = 0.0
        for row, value in ((0, torch.nan), (1, -torch.nan), (2, torch.inf)):
            logits[row, size // 2] = value
        logits[3], logits[4] = -torch.inf, -1e38
        seats = torch.arange(40, dtype=torch.int32)
        seats[5] = -1
        zeros, ones = torch.zeros(40), torch.ones(40)
        tokens = run(logits, seats, zeros, zeros.int(), ones, zeros, zeros.long(), zeros.long())
        expected = logits.argmax(-1).int()
        expected[[0, 1, 2, 3, 5]] = -1
        assert torch.equal(tokens, expected), size
