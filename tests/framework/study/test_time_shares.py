"""Shares of the time of steps: on a clock that a fake engine moves, and of real engines."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from framework.build import build_engine
from framework.config import CacheConfig, EngineConfig, ExecutorConfig
from framework.sampling_params import SamplingParams
from framework.speculation.config import SpeculativeConfig
from framework.study.time_shares import PARTS, TimeShares


class FakeEngine:
    """A step: 1 s of its own, 2 s in which text makes drafts, 17 s in the executor: 7 of them for the model, 4 to sample, and 6 to
    make drafts, which sample for 2."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.executor: Any = SimpleNamespace(submit=self._submit, watch=self._watch, in_flight_steps=1)
        proposer = SimpleNamespace(start=None, propose=lambda *_: self._pass(2), stop=None)
        self.scheduler: Any = SimpleNamespace(speculation=SimpleNamespace(proposer=proposer))
        self._sample, self._draft = self._pass, self._make_drafts

    def watch(self, around: Any) -> None:
        self.step = around(self.step)  # type: ignore[method-assign]

    def step(self) -> None:
        self._pass(1)
        self.scheduler.speculation.proposer.propose("a", [1], 3)
        self.executor.submit(None)

    def _watch(self, around: Any) -> None:
        self._sample, self._draft = around("sampling", self._sample), around("drafting", self._draft)

    def _submit(self, step: Any) -> None:
        self._pass(7)
        self._sample(4)
        self._draft()

    def _make_drafts(self) -> None:
        self._pass(4)
        self._sample(2)

    def _pass(self, seconds: float) -> None:
        self.time_s += seconds


def test_a_part_counts_without_those_that_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(time, "perf_counter", lambda: engine.time_s)
    shares = TimeShares.of(engine)  # type: ignore[arg-type]
    assert shares is not None and shares.metrics() == {}, "no step, no time"
    engine.step()
    engine.step()
    assert shares.metrics() == {"drafting_share": 6 / 20, "verifying_share": 7 / 20, "sampling_share": 6 / 20}


@pytest.mark.parametrize(
    "spec",
    [
        SpeculativeConfig("suffix", 3),
        SpeculativeConfig("mtp", 3, model="tiny-mtp"),
        SpeculativeConfig("suffix", 3, rejection_sample_method="standard"),
    ],
    ids=("suffix", "mtp", "standard"),
)
def test_every_part_of_a_real_engine_takes_time_and_changes_nothing(spec: SpeculativeConfig) -> None:
    config = EngineConfig(device="cpu", cache=CacheConfig(num_blocks=64), speculative_config=spec)
    outputs = []
    for is_watched in (False, True):
        engine = build_engine(config)
        shares = TimeShares.of(engine) if is_watched else None
        engine.add_request("a", "for i in range(10):\n    for i in range(", SamplingParams(max_tokens=12, seed=3))
        while engine.has_unfinished():
            found = engine.step()
        outputs.append(found[0].outputs[0].token_ids)
    assert outputs[0] == outputs[1]
    assert shares is not None
    metrics = shares.metrics()
    assert [*metrics] == [f"{part}_share" for part in PARTS]
    assert all(share > 0 for share in metrics.values()) and sum(metrics.values()) < 1


def test_nothing_is_said_of_engines_without_drafts_or_without_a_device() -> None:
    assert TimeShares.of(build_engine(EngineConfig(device="cpu", cache=CacheConfig(num_blocks=64)))) is None
    spec = SpeculativeConfig("ngram", 3, synthetic_acceptance_rates=[0.5, 0.4, 0.3])
    assert TimeShares.of(build_engine(EngineConfig(executor=ExecutorConfig("simulated"), speculative_config=spec))) is None
