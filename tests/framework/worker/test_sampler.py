"""Logits of 16 bits stay so on their way to a token, unless a row of the step has penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from framework.engine.step import NewRequest
from framework.plan import KernelPlan
from framework.sampling_params import SamplingParams
from framework.worker.sampler import Sampler
from framework.worker.step_rows import SampleRows

CPU = torch.device("cpu")


def sampled(logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **penalties: Any) -> tuple[Any, ...]:
    """Tokens and log-probabilities of two rows, of which the first has the penalties, and the type that tokens were drawn from."""
    sampler = Sampler(KernelPlan({}, [], CPU, logits.dtype), 2, logits.shape[1], CPU)
    for seat, given in enumerate((penalties, {})):
        params = SamplingParams(temperature=1.0, top_p=0.9, seed=seat, logprobs=2, **given)
        sampler.add(NewRequest(seat, str(seat), [1, 4], 2, 0, [[1]], params))
    draw, drawn_from = sampler._draw, []

    def spy(given: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn_from.append(given.dtype)
        return draw(given, *rest)

    monkeypatch.setattr(sampler, "_draw", spy)
    seats, positions = np.array([0, 1]), np.array([2, 2])
    rows = SampleRows(seats, positions, torch.from_numpy(seats).int(), torch.from_numpy(positions))
    found = sampler.sample(logits.clone(), rows, torch.zeros(2, 8, dtype=torch.int64))
    tokens, logprobs = found.tokens, found.logprobs
    assert logprobs is not None
    return tokens.tolist(), logprobs.by_row(), drawn_from


@pytest.mark.parametrize("penalties", [{}, {"logit_bias": {3: 9.0}, "repetition_penalty": 1.3}], ids=["plain", "penalized"])
def test_sixteen_bits_are_enough_without_penalties(penalties: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (3 * torch.randn(2, 50, generator=torch.Generator().manual_seed(1))).bfloat16()
    tokens, logprobs, drawn_from = sampled(logits, monkeypatch, **penalties)
    wide = sampled(logits.float(), monkeypatch, **penalties)
    assert drawn_from == [torch.float32 if penalties else torch.bfloat16]
    assert (tokens, logprobs) == wide[:2]
    raw = torch.log_softmax(logits.double(), dim=-1)
    for row, token in enumerate(tokens):
        assert logprobs[row].logprob == pytest.approx(float(raw[row, token]), abs=1e-5)  # of what the model said, not the penalties
