"""Profiles: on a clock that tests move, and of a simulated device."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.build import build_engine
from framework.config import EngineConfig
from framework.op_times import OpCall, OpTimes
from framework.study.capture import Captured
from framework.study.driver import run_workload
from framework.study.profile import Profile, lens_text
from framework.study.workload import WorkloadConfig, build_workload

LINEAR = OpCall.of("linear", "native", "float32", {"in_features": 8, "out_features": 4}, q_lens=(3,))
DECODE = OpCall.of("paged_attention_decode", "native", "float32", {"num_heads": 2}, q_lens=(1, 1), ctx_lens=(9, 7))


class FakeEngine:
    """A step: schedules 1 ms; submits 10 ms, of which calls take 6 and 1.5, and hooks 0.5; waits 2 ms; commits 3 ms."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.clock = SimpleNamespace(now=lambda: self.time_s)
        self.times = OpTimes("wall")
        self.executor: Any = SimpleNamespace(call_times=self.times, submit=self._submit)

    def watch(self, around: Any) -> None:
        self.step = around(self.step)  # type: ignore[method-assign]

    def step(self) -> str:
        self.time_s += 1e-3
        handle = self.executor.submit(SimpleNamespace(seats=[0, 1], num_tokens=[1, 1]))
        handle.result()
        self.time_s += 3e-3
        return "outputs"

    def _submit(self, step: Any) -> Any:
        self.times.add(LINEAR, self.time_s, 6e-3, 2)
        self.times.add(DECODE, self.time_s + 6e-3, 1.5e-3)
        self.times.overhead_s += 5e-4
        self.time_s += 10e-3

        def result() -> None:
            self.time_s += 2e-3

        return SimpleNamespace(result=result)


def test_phases_calls_and_the_rest_sum_to_the_steps(tmp_path: Path) -> None:
    engine = FakeEngine()
    profile = Profile(engine)  # type: ignore[arg-type]
    assert [engine.step(), engine.step()] == ["outputs"] * 2
    found = {part.name: (part.calls, round(part.seconds * 1e3, 9)) for part in profile.summary()}
    assert found == {
        "linear": (4, 12.0),
        "paged_attention_decode": (2, 3.0),
        "(schedule)": (2, 2.0),
        "(wait)": (2, 4.0),
        "(commit)": (2, 6.0),
        "(profile)": (2, 1.0),
        "(other)": (2, 4.0),
    }
    assert sum(part.seconds for part in profile.summary()) == pytest.approx(2 * 16e-3)
    assert "linear 6.00, (commit) 3.00" in profile.explain(profile.steps[0])
    profile.write(tmp_path)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    second = [span for span in spans if span[2] >= 16e3]
    assert second == [
        (1, "step", 16000.0, 16000.0),
        (1, "schedule", 16000.0, 1000.0),
        (1, "submit", 17000.0, 10000.0),
        (1, "wait", 27000.0, 2000.0),
        (1, "commit", 29000.0, 3000.0),
        (2, "linear", 17000.0, 6000.0),
        (2, "paged_attention_decode", 23000.0, 1500.0),
    ]
    rows = list(csv.DictReader((tmp_path / "op_times.csv").open()))
    assert [(row["op"], row["q_lens"], row["ctx_lens"], float(row["us"]), row["count"]) for row in rows] == [
        ("linear", "3", "", 3000.0, "4"),
        ("paged_attention_decode", "1*2", "9 7", 1500.0, "2"),
    ]
    (step, _) = csv.DictReader((tmp_path / "steps.csv").open())
    assert (float(step["submit_s"]), float(step["ops_s"]), step["num_rows"]) == (10e-3, 7.5e-3, "2")


def test_a_simulated_run_is_profiled_and_captured() -> None:
    """The calls' times sum to what the executor reports, and their contexts grow by one token a step."""
    config = EngineConfig(profile=True, capture=["paged_attention_decode"])
    config.executor.kind, config.executor.calibration = "simulated", "roofline"
    config.model.skip_tokenizer = True
    engine = build_engine(config)
    workload = build_workload(WorkloadConfig(num_requests=2, prompt_tokens=32, prompt_spread=0, output_tokens=8), 512, None)
    profile, captured = Profile(engine), Captured(engine, config.capture)
    run_workload([engine], workload)
    totals = {op: entry["seconds"] for op, entry in engine.plan_report().items() if entry["calls"]}
    found = {part.name: part.seconds for part in profile.summary() if not part.name.startswith("(")}
    assert found == pytest.approx(totals)
    contexts = [call.ctx_lens for call, *_ in profile.op_times if call.op == "paged_attention_decode"]
    assert contexts[:2] == [(33, 33), (34, 34)] and profile.op_times.source == "model"
    assert "paged_attention_decode" in captured.table()


def test_what_is_not_called_cannot_be_captured() -> None:
    config = EngineConfig(capture=["layer_norm"])
    config.executor.kind, config.executor.calibration = "simulated", "roofline"
    with pytest.raises(ValueError, match="capture names 'layer_norm', which this model never calls"):
        build_engine(config)


def test_lengths_as_text() -> None:
    assert lens_text((1, 1, 1, 128)) == "1*3 128" and lens_text(()) == ""
