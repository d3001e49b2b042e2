"""The rules that say which drafts stand, through the sampler; and what comes out of an engine under each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from framework import LLM, SamplingParams
from framework.engine.step import NewRequest
from framework.plan import KernelPlan
from framework.speculation.config import SpeculativeConfig
from framework.worker.sampler import Sampled, Sampler
from framework.worker.step_rows import DraftRows, SampleRows, StepRows
from triton_kernels.impls.verify_draft import torch as verify_torch

CPU = torch.device("cpu")
NUM_DRAWS, VOCAB, K = 100_000, 12, 2
ON_DEVICE, ON_HOST = {"method": "draft_model", "model": "tiny-draft"}, {"method": "ngram"}


def make_sampler(num_seats: int, params: SamplingParams, **speculative: Any) -> Sampler:
    """Of requests that differ in their seeds alone."""
    config = SpeculativeConfig.of({"num_speculative_tokens": K, **speculative})
    config.validate()
    sampler = Sampler(KernelPlan({"default": "torch"}, [], CPU, torch.float32), num_seats, VOCAB, CPU, config)
    for seat in range(num_seats):
        params.seed = 7_000_000 + seat
        sampler.add(NewRequest(seat, str(seat), [1, 4], 2, 0, [[1]], params))
    return sampler


def sample_rows(num_seats: int, num_drafts: list[int], positions: list[int], from_host: bool) -> SampleRows:
    """Of seats in turn, with so many drafts, whose first logit row decides the token at such a position."""
    seats, num_logits = np.arange(num_seats), np.array(num_drafts) + 1
    rows = StepRows.of(seats, num_logits, np.array(positions) - 1, num_logits)
    on_host = rows.seats[rows.logit_rows], rows.logit_positions
    found = SampleRows(*on_host, torch.from_numpy(on_host[0]).int(), torch.from_numpy(on_host[1]))
    found.drafts, found.drafts_from_host = DraftRows.of(rows, CPU), from_host
    return found


def verified(sampler: Sampler, logits: torch.Tensor, drafts: torch.Tensor, start: int, from_host: bool = False) -> Sampled:
    """logits [1 + k, V] of every request, whose drafts int64 [R, k] stand at ``start``."""
    count, num_drafts = drafts.shape
    token_ids = torch.zeros(count, start + num_drafts + 1, dtype=torch.int64)
    token_ids[:, start : start + num_drafts] = drafts
    rows = sample_rows(count, [num_drafts] * count, [start] * count, from_host)
    return sampler.sample(logits.repeat(count, 1), rows, token_ids)


def chi_square(tokens: torch.Tensor, p: torch.Tensor) -> tuple[float, float]:
    """Of tokens that are to follow p float64 [V], and the limit that it should stay below; infinite if one came that cannot."""
    observed = torch.bincount(tokens.long(), minlength=VOCAB).double()
    if bool(observed[p == 0].any()):
        return float("inf"), 0.0
    expected = p[p > 0] * len(tokens)
    freedom = int((p > 0).sum()) - 1
    return float(((observed[p > 0] - expected) ** 2 / expected).sum()), freedom + 5 * (2 * freedom) ** 0.5


def filtered(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The probabilities float64 [V] that the filters leave, by hand."""
    p = torch.softmax(scores.double(), 0)
    kept = sorted(range(VOCAB), key=lambda token: -float(p[token]))[:top_k]
    total, mass, nucleus = float(p[kept].sum()), 0.0, []
    for token in kept:
        if mass >= top_p * total:
            break
        nucleus.append(token)
        mass += float(p[token])
    out = torch.zeros_like(p)
    out[nucleus] = p[nucleus] / p[nucleus].sum()
    return out


def drawn_drafts(sampler: Sampler, draft_logits: torch.Tensor, start: int) -> torch.Tensor:
    """Drafts int64 [R, K] of every request, from logits [K, V]."""
    seats = torch.arange(NUM_DRAWS, dtype=torch.int32)
    positions = (torch.full((NUM_DRAWS,), start + nth) for nth in range(K))
    drawn = [sampler.draw_drafts(row.expand(NUM_DRAWS, -1), seats, position) for row, position in zip(draft_logits, positions)]
    return torch.stack(drawn, 1)


def chi_squares(speculative: dict[str, Any]) -> list[tuple[float, float]]:
    """Of the tokens at each place of a row, where it was reached."""
    generator = torch.Generator().manual_seed(12)
    logits = 1.5 * torch.randn(K + 1, VOCAB, generator=generator)
    draft_logits = logits[:K] + torch.randn(K, VOCAB, generator=generator)
    params = SamplingParams(temperature=0.8, top_k=9, top_p=0.95)
    sampler = make_sampler(NUM_DRAWS, params, rejection_sample_method="standard", **speculative)
    on_host = speculative["method"] == "ngram"
    likely = logits[:K].topk(2).indices[:, 1].expand(NUM_DRAWS, K)
    found = verified(sampler, logits, likely if on_host else drawn_drafts(sampler, draft_logits, 5), 5, on_host)
    assert found.accepted is not None
    tokens = found.tokens.view(NUM_DRAWS, K + 1)
    reached = [tokens[found.accepted >= nth, nth] for nth in range(K + 1)]
    assert all(len(those) > 1000 and int(those.min()) >= 0 for those in reached) and 0 < float(found.accepted.double().mean()) < K
    return [chi_square(those, filtered(logits[nth] / 0.8, 9, 0.95)) for nth, those in enumerate(reached)]


WAYS = [ON_DEVICE, {**ON_DEVICE, "draft_sample_method": "greedy"}, ON_HOST]
IDS = ["drawn drafts", "greedy drafts", "drafts of the host"]


@pytest.mark.parametrize("speculative", WAYS, ids=IDS)
def test_standard_draws_from_the_distribution_of_the_model(speculative: dict[str, Any]) -> None:
    for found, limit in chi_squares(speculative):
        assert found < limit


@pytest.mark.parametrize("speculative", WAYS, ids=IDS)
def test_the_recovered_token_has_to_come_from_what_is_left(speculative: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_torch, "_residual", lambda scores, draft, draft_probs: scores)
    found, limit = chi_squares(speculative)[0]
    assert found > limit


def test_distributions_of_drafts_belong_to_seats_and_positions() -> None:
    """Rows with fewer drafts than the step's most, at places of their own: what is sure to be drawn must be accepted."""
    sampler = make_sampler(3, SamplingParams(temperature=1.0), rejection_sample_method="standard", **ON_DEVICE)
    num_drafts, positions = [2, 0, 1], [4, 9, 7]
    token_ids, logits = torch.zeros(3, 12, dtype=torch.int64), []
    for seat, (count, position) in enumerate(zip(num_drafts, positions)):
        for nth in range(count + 1):
            logits.append(torch.randn(VOCAB, generator=torch.Generator().manual_seed(10 * seat + nth)))
            if nth < count:
                where = torch.tensor([seat]).int(), torch.tensor([position + nth])
                token_ids[seat, position + nth] = sampler.draw_drafts(logits[-1][None], *where)
    rows = sample_rows(3, num_drafts, positions, from_host=False)
    found = sampler.sample(torch.stack(logits), rows, token_ids)
    assert found.accepted is not None and found.accepted.tolist() == num_drafts


def test_a_proposer_that_says_nothing_harms_nobody() -> None:
    """Its draft is token 0, and certain: so the row's token follows the model all the same."""
    sampler = make_sampler(4000, SamplingParams(temperature=1.0), rejection_sample_method="standard", **ON_DEVICE)
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(3))
    broken = torch.full((4000, VOCAB), torch.nan)
    drafts = sampler.draw_drafts(broken, torch.arange(4000, dtype=torch.int32), torch.full((4000,), 6))[:, None]
    assert not bool(drafts.any())
    found = verified(sampler, logits, drafts, 6)
    value, limit = chi_square(found.tokens.view(4000, 2)[:, 0], torch.softmax(logits[0].double(), 0))
    assert value < limit


@pytest.mark.parametrize("rates", [[0.7, 0.4], [0.9, 0.0], [1.0, 1.0]], ids=str)
def test_synthetic_rates_are_met(rates: list[float]) -> None:
    sampler = make_sampler(NUM_DRAWS, SamplingParams(temperature=0.0), synthetic_acceptance_rates=rates, **ON_HOST)
    logits, drafts = torch.eye(VOCAB)[[3, 4, 5]], torch.tensor([8, 9]).repeat(NUM_DRAWS, 1)  # no draft is right
    found = verified(sampler, logits, drafts, 5, from_host=True)
    assert found.accepted is not None
    for nth, rate in enumerate(rates):
        mean = float((found.accepted > nth).double().mean())
        assert abs(mean - rate) <= 3 * (rate * (1 - rate) / NUM_DRAWS) ** 0.5
    tokens = found.tokens.view(NUM_DRAWS, K + 1)
    for count, expected in enumerate(([3], [8, 4], [8, 9, 5])):  # drafts as accepted, then what the model says
        assert all(row == expected for row in tokens[found.accepted == count, : count + 1].unique(dim=0).tolist())


def test_penalties_count_the_drafts_before_a_row_and_afterwards_what_stands() -> None:
    sampler = make_sampler(2, SamplingParams(temperature=0.0, frequency_penalty=1.0), **ON_HOST)
    token_ids = torch.zeros(2, 8, dtype=torch.int64)
    token_ids[0, 2:4] = torch.tensor([3, 8])  # drafts, of which the first is right

    def scores(**given: float) -> torch.Tensor:
        return torch.tensor([given.get(f"t{token}", 0.0) for token in range(VOCAB)])

    rows = sample_rows(2, [2, 0], [2, 2], from_host=True)
    logits = [scores(t3=5.0), scores(t3=5.0, t6=4.5), scores(t3=9.0), scores(t5=1.0)]
    found = sampler.sample(torch.stack(logits), rows, token_ids)
    assert found.accepted is not None and found.accepted.tolist() == [1, 0]
    assert found.tokens[[0, 1, 3]].tolist() == [3, 6, 5], "behind a 3, another 3 is less likely than a 6"
    logits = [scores(t3=5.0, t6=4.6, t7=3.8), scores(t5=1.5, t2=0.7)]
    found = sampler.sample(torch.stack(logits), sample_rows(2, [0, 0], [4, 3], from_host=True), token_ids)
    assert found.tokens.tolist() == [3, 2], "one 3, one 6 and one 5 stand"


PROMPTS = ["def add(a, b):\n    return a", "import os\nimport sys\nimport", "for i in range(3):\n    print(i)\nfor i in range"]


def generate(temperature: float, **speculative: Any) -> tuple[list[Any], tuple[int, ...], tuple[int, ...]]:
    """Tokens of three prompts; drafts, and those of them that were right, by position."""
    llm = LLM("tiny", dtype="float32", num_gpu_blocks_override=96, max_model_len=128, speculative_config=speculative or None)
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=40, ignore_eos=True, top_p=0.9 if seed else 1.0)
        for seed in range(len(PROMPTS))
    ]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    counts = llm.engine.stats().drafts
    return [output.outputs[0].token_ids for output in outputs], counts.drafts, counts.accepted


@pytest.mark.parametrize("method", [{"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}, ON_DEVICE], ids=str)
def test_greedy_tokens_are_those_of_match(method: dict[str, Any]) -> None:
    plain, _, _ = generate(0.0)
    for rule in ("match", "standard"):
        tokens, drafts, accepted = generate(0.0, **method, num_speculative_tokens=3, rejection_sample_method=rule)
        assert tokens == plain and 0 < sum(accepted) < sum(drafts)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.2])
def test_the_model_accepts_every_draft_of_its_own(temperature: float) -> None:
    own = {"method": "draft_model", "model": "tiny", "num_speculative_tokens": 3, "rejection_sample_method": "standard"}
    _, drafts, accepted = generate(temperature, **own)
    assert drafts == accepted and sum(drafts) > 80


def test_synthetic_drafts_come_from_the_text() -> None:
    """A proposer of the host is asked, where there is a model."""
    method = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}
    _, drafts, accepted = generate(0.0, **method, num_speculative_tokens=3, synthetic_acceptance_rates=[1.0, 0.5, 0.0])
    assert accepted[0] == drafts[0] > 0 and 0 < accepted[1] < drafts[1] and accepted[2] == 0
