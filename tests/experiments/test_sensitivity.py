"""Elasticities: by hand, and of a simulated device whose steps are known to be sums."""

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.scaled_runs import OnProcessor, Setting
from experiments.sensitivity import main
from framework.study.sensitivity import ALL, ALL_OPS, METRICS, TWICE, agreement, elasticities, ratios


def test_elasticities_of_a_sum() -> None:
    """A metric of three parts, 60 %, 30 % and 10 % of it; a rate is its inverse."""
    parts = {"a": 0.6, "b": 0.3, "host": 0.1}
    times = {(part, f): [1 + s * (f - 1)] * 3 for part, s in parts.items() for f in (0.5, 0.8, 1.25, 2.0)}
    found = {each.part: each for each in elasticities("tpot_p50_s", times)}
    assert {part: round(each.mean, 9) for part, each in found.items()} == {**parts, ALL_OPS: 0.9, ALL: 1.0}
    assert list(found) == ["a", "b", "host", ALL_OPS, ALL] and found["a"].ratios[2.0] == pytest.approx(1.6)
    rates = {key: [1 / value for value in values] for key, values in times.items()}
    assert [round(each.mean, 9) for each in elasticities("goodput_per_s", rates)] == [-0.6, -0.3, -0.1, -0.9, -1.0]


def test_the_sum_is_taken_repeat_by_repeat() -> None:
    """What one part has too much of, the other has too little: the parts are uncertain, their sum is not."""
    noise = np.array([0.1, -0.1, 0.05, -0.05])
    found = elasticities("tpot_p50_s", {("a", 2.0): list(1.5 + noise), ("b", 2.0): list(1.5 - noise)})
    assert found[0].interval.high - found[0].interval.low > 0.1
    assert found[-1].part == ALL and found[-1].interval.high - found[-1].interval.low < 1e-9


def test_runs_are_compared_at_the_same_speed_of_the_machine() -> None:
    """The second run met a machine of half the speed: its calls took twice as long."""
    base = {"part": "a", "factor": 1.0, "impl": "", "is_base": True, "repeat": 0}
    base |= {"tpot_p50_s": 1.0, "tpot_p50_s.part_s": 0.2, "tpot_p50_s.others_s": 0.6}
    slow = {**base, "factor": 2.0, "is_base": False}
    slow |= {"tpot_p50_s": 2.4, "tpot_p50_s.part_s": 0.4, "tpot_p50_s.others_s": 1.2}
    assert ratios([base, slow], "tpot_p50_s") == {("a", 2.0): [pytest.approx(1.2)]}


def test_a_kernel_that_works_twice_agrees_with_the_delay_that_stands_for_it() -> None:
    """Both make calls that were a fifth of the time take as long again."""
    rows = []
    for repeat, noise in enumerate((1.0, 1.01)):
        for is_base, impl, part_s, metric in ((True, "", 0.2, 1.0), (False, "", 0.2, 1.2), (False, TWICE, 0.4, 1.2 * noise)):
            row = {"part": "a", "factor": 1.0 if is_base else 2.0, "impl": impl, "is_base": is_base, "repeat": repeat}
            for name in ("ttft_p50_s", "tpot_p50_s"):
                row |= {name: metric, f"{name}.part_s": part_s, f"{name}.others_s": 0.8}
            rows.append(row)
    head, *lines = agreement(rows)
    assert len(set(head)) == len(head), "each is a column of its own"
    found = [dict(zip(head, line, strict=True)) for line in lines]
    assert [(row["metric"], row["op"], row["its calls took"]) for row in found] == [
        ("ttft_p50_s", "a", "x 2.00"),
        ("tpot_p50_s", "a", "x 2.00"),
    ]
    assert {row["agree"] for row in found} == {"yes"} and found[0]["with the delay"] == "1.200"


def test_a_simulated_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["executor=simulated", "executor.calibration=roofline", "workload=random", "workload.num_requests=8"]
    overrides += ["workload.prompt_tokens=64", "workload.output_tokens=8", "executor.step_overhead_s=1e-6", "executor.launch_s=0"]
    main([*overrides, "--repeats", "2", "--factors", "0.8,1.25", "--output", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "elasticities.csv").open()))
    sums = {row["metric"]: float(row["elasticity"]) for row in rows if row["part"] == ALL}
    assert sums["ttft_p50_s"] == pytest.approx(1, abs=0.02) and sums["tpot_p50_s"] == pytest.approx(1, abs=0.02)
    measured = (tmp_path / "runs.csv").read_text()
    main([*overrides, "--repeats", "2", "--factors", "0.8,1.25", "--output", str(tmp_path)])
    assert (tmp_path / "runs.csv").read_text() == measured  # nothing is measured again
    assert "sensitivity.png" in capsys.readouterr().out


def test_a_part_asked_for_alone_is_made_faster_by_slowing_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[list[str]] = []

    def run(subject: OnProcessor, setting: Setting, seed: int) -> dict[str, float]:
        others.append([part for part in subject.parts if part != setting.part])
        return {name: 1.0 for metric in METRICS for name in (metric, f"{metric}.part_s", f"{metric}.others_s")}

    monkeypatch.setattr(OnProcessor, "run", run)
    overrides = ["workload=random", "workload.num_requests=2", "workload.prompt_tokens=16", "workload.output_tokens=2"]
    overrides += ["cache.num_blocks=512"]  # which this process keeps: the command freezes what it has made
    main([*overrides, "--parts", "linear", "--factors", "0.5", "--repeats", "1", "--output", str(tmp_path)])
    assert all({"host", "rms_norm", "silu_and_mul"} < set(found) for found in others)
    assert {row["part"] for row in csv.DictReader((tmp_path / "runs.csv").open())} == {"linear"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factors", "1,2"], "positive numbers other than 1"),
        (["--parts", "layer_norm"], "this workload has no such part"),
        (["--twice", "linear"], "--twice needs a processor"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    overrides = ["executor=simulated", "executor.calibration=roofline", "workload=random", "workload.num_requests=2"]
    with pytest.raises(ValueError, match=message):
        main([*overrides, "workload.prompt_tokens=16", *arguments, "--repeats", "1", "--output", str(tmp_path)])
