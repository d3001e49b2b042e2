"""Drafts that are made on the device: how good they are, and what cannot make any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.corpus import load_corpus
from framework.engine.engine import Engine
from framework.models.hub import read_json, resolve_model
from framework.speculation.config import SpeculativeConfig
from framework.worker.drafting.head import MedusaHeads, over_all_tokens
from framework.worker.drafting.proposer import Verified
from framework.worker.step_rows import StepRows
from tests.framework.engines import run
from tests.speculating import METHODS, Job, Oracle, check_equal, comes, make_engine

TINY_DRAFT = read_json(resolve_model("tiny-draft"), "config.json")


def held_out(temperature: float, count: int = 6) -> list[Job]:
    """Beginnings of files that no model of this package has seen."""
    encode = make_engine().inputs.encode
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=50, ignore_eos=True) for i in range(count)]
    return [(encode(file.text[:400])[:60], own) for file, own in zip(load_corpus().heldout, params)]


def mean_length(speculative: dict[str, Any], jobs: list[Job], **scheduler: int) -> float:
    """Tokens per step that checked drafts."""
    engine = make_engine(
        {**speculative, "num_speculative_tokens": 3}, scheduler=SchedulerConfig(max_num_seqs=4, **scheduler), kernels="auto"
    )
    check_equal(run(engine, jobs), run(make_engine(kernels="auto"), jobs, together=False))
    drafts = engine.stats().drafts
    return 1 + sum(drafts.accepted) / drafts.drafts[0]


def test_heads_draft_as_well_when_served_as_when_they_were_measured() -> None:
    """The card of tiny-mtp has 3.20 tokens per step, that of tiny-draft 2.41, over more text."""
    jobs = held_out(0.0)
    draft, mtp = {"method": "draft_model", "model": "tiny-draft"}, {"method": "mtp", "model": "tiny-mtp"}
    by_draft, by_mtp = mean_length(draft, jobs), mean_length(mtp, jobs)
    assert by_draft > 2.0 and by_mtp > 2.7
    ways: list[dict[str, int]] = [{"in_flight_steps": 2}, {"max_num_batched_tokens": 17}]
    for way in ways:
        assert mean_length(draft, jobs, **way) == pytest.approx(by_draft, abs=0.1)
        assert mean_length(mtp, jobs, **way) == pytest.approx(by_mtp, abs=0.1)


def test_rows_behind_wrong_drafts_have_log_probabilities_of_their_own() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=1)
    jobs = [([*range(300 + i, 310 + i)], params) for i in range(3)]
    expected = run(make_engine(kernels="auto"), jobs)
    Oracle.comes = comes(jobs, expected)
    engine = make_engine({**METHODS["oracle"], "num_speculative_tokens": 3}, kernels="auto")
    check_equal(run(engine, jobs), expected)
    drafts = engine.stats().drafts
    assert 0 < sum(drafts.accepted) < sum(drafts.drafts)


def dummy(**speculative: Any) -> Engine:
    """A model of random weights, for shapes that no checkpoint has."""
    model = ModelConfig("tiny", dtype="float32", max_model_len=100, load_format="dummy")
    given = {"method": "draft_model", "model": "draft", "num_speculative_tokens": 3, **speculative} if speculative else {}
    config = EngineConfig(model, CacheConfig(num_blocks=40), num_threads=1, speculative_config=SpeculativeConfig.of(given))
    return build_engine(config)


def test_beyond_the_drafts_longest_sequence_generation_goes_on_without() -> None:
    short = {**TINY_DRAFT, "max_position_embeddings": 40}
    jobs: list[Job] = [([5] * 30, SamplingParams(max_tokens=60, ignore_eos=True, seed=1)), ([7] * 60, SamplingParams(seed=2))]
    engine = dummy(architecture=short)
    check_equal(run(engine, jobs), run(dummy(), jobs))
    assert 0 < sum(engine.stats().drafts.drafts) <= 3 * 10


@pytest.mark.parametrize(
    ("speculative", "reason"),
    [
        ({"architecture": {**TINY_DRAFT, "vocab_size": 1000}}, r"its vocabulary has 1000 tokens, the model's 2048"),
        ({"method": "mtp", "model": None}, r"has no multi-token prediction module"),
    ],
)
def test_drafters_that_do_not_fit_are_refused(speculative: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_weights(*args: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("framework.worker.local_executor.load_model", read_weights)
    with pytest.raises(ValueError, match=reason):
        dummy(**speculative)


def test_a_head_of_fewer_tokens_drafts_no_other() -> None:
    logits = torch.tensor([[-3.0, -1.0], [-2.0, -4.0]])
    found = over_all_tokens(logits, torch.tensor([4, 2]), 6)
    none = -torch.inf
    assert found.tolist() == [[none, none, -1, none, -3, none], [none, none, -4, none, -2, none]]
    assert over_all_tokens(logits, None, 2) is logits


class CountingHeads:
    """Head i of the state s drafts token 10 s + i."""

    target_ids = None

    def draft_logits(self, hidden: torch.Tensor, num_drafts: int) -> torch.Tensor:
        tokens = 10 * hidden[:, :1].long() + torch.arange(num_drafts)
        return torch.nn.functional.one_hot(tokens, 100).float()


def test_medusa_drafts_from_the_state_at_the_last_right_token() -> None:
    """A head per draft; of a prompt's end, of a prompt's middle, and of rows with a right and with wrong drafts."""
    rows = StepRows.of(np.array([2, 0, 1, 3]), np.array([3, 2, 3, 3]), np.array([0, 0, 4, 6]), np.array([1, 0, 3, 3]))
    tokens = torch.zeros(4, 20, dtype=torch.int64)
    hidden = torch.tensor([0, 0, 1, 0, 0, 0, 2, 0, 3, 0, 0]).float()[:, None]  # position 2 of seat 2, 5 of seat 1, 6 of seat 3
    newest = torch.tensor([3, 6, 7])
    step = Verified(rows, None, hidden, None, torch.tensor([2, 1, 3]), newest, newest.numpy())
    heads = MedusaHeads(CountingHeads(), 100, tokens, lambda logits, seats, positions: logits.argmax(-1))  # type: ignore[arg-type]
    heads.propose(step, 3)
    assert tokens[2, 4:8].tolist() == [10, 11, 12, 0]
    assert tokens[1, 7:11].tolist() == [20, 21, 22, 0]
    assert tokens[3, 8:12].tolist() == [30, 31, 32, 0]
    assert int((tokens > 0).sum()) == 9
