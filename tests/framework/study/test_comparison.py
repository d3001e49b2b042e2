"""Paired comparison of runs: what is paired with what, failures and zeros, what the verdict says, and how often it is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from framework.cli import main
from framework.study.comparison import compare, outliers, summarize
from framework.study.results import write_run
from framework.study.statistics import confidence_halfwidth

TPOT, GOODPUT = "metric.tpot_p50_s", "metric.goodput_per_s"


def runs_of(values: dict[str, list[float]], metric: str = TPOT, **columns: object) -> pd.DataFrame:
    """Repeats of the settings of column ``policy``, interleaved; NaN is a run that failed."""
    rows = [
        {"status": "failed" if math.isnan(repeats[i]) else "ok", "policy": policy, "repeat": i, metric: repeats[i]} | columns
        for i in range(max(map(len, values.values())))
        for policy, repeats in values.items()
        if i < len(repeats)
    ]
    return pd.DataFrame([{"run": str(i), **row} for i, row in enumerate(rows)])


def only(runs: pd.DataFrame, metric: str = TPOT, base: str = "a") -> dict:
    (row,) = compare(runs, [metric], "policy", base).to_dict("records")
    return row


def test_the_estimate_and_its_interval_by_hand() -> None:
    """Ratios 1.1, 1.2, 1.1, 1.2: the geometric mean, and t for three degrees of freedom of the logarithms."""
    row = only(runs_of({"a": [1.0, 2.0, 3.0, 4.0], "b": [1.1, 2.4, 3.3, 4.8]}))
    logs = np.log([1.1, 1.2, 1.1, 1.2])
    half = 3.182 * logs.std(ddof=1) / 2
    assert (row["runs"], row["pairs"], row["scale"], row["interval"]) == (4, 4, "ratio", "t")
    assert row["estimate"] == pytest.approx(math.sqrt(1.1 * 1.2))
    assert (row["low"], row["high"]) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert row["effect_size"] == pytest.approx(logs.mean() / logs.std(ddof=1))
    assert row["verdict"] == "14.9 % slower"


def test_many_pairs_have_a_bootstrap_interval() -> None:
    rng = np.random.default_rng(0)
    base = rng.lognormal(size=30)
    row = only(runs_of({"a": list(base), "b": list(base * rng.lognormal(0.1, 0.01, 30))}))
    assert row["interval"] == "bootstrap" and row["low"] < math.exp(0.1) < row["high"] < 1.12
    assert row["verdict"].endswith("% slower")


@pytest.mark.parametrize(
    ("metric", "factor", "verdict"),
    [
        (TPOT, 1.5, "50 % slower"),
        (TPOT, 0.5, "50 % faster"),
        (GOODPUT, 1.5, "50 % higher"),
        (GOODPUT, 0.5, "50 % lower"),
        ("metric.kv_usage_mean", 1.5, "50 % higher"),
        ("metric.kl_mean", 1.0, "within noise"),
    ],
)
def test_what_a_change_is_called(metric: str, factor: float, verdict: str) -> None:
    base = [1.0, 1.1, 1.2]
    assert only(runs_of({"a": base, "b": [factor * v for v in base]}, metric), metric)["verdict"] == verdict


def test_failed_and_missing_runs_are_in_no_pair() -> None:
    nan = math.nan
    row = only(runs_of({"a": [1.0, nan, 1.0, 1.0, 1.0], "b": [2.0, 2.0, nan, 2.0]}))
    assert (row["runs"], row["pairs"]) == (4, 2)
    for values, verdict, pairs in (([2.0], "one pair, no interval", 1), ([nan, nan], "no pair", 0)):
        row = only(runs_of({"a": [1.0, 1.0], "b": values}))
        assert (row["verdict"], row["pairs"], row["interval"]) == (verdict, pairs, "none")


def test_a_repeat_that_is_not_there_shifts_no_pair() -> None:
    """Repeats differ tenfold, the settings by a half."""
    runs = runs_of({"a": [1.0, 10.0, 100.0], "b": [1.5, 15.0, 150.0]})
    row = only(runs[(runs["policy"] != "a") | (runs["repeat"] != 1)])
    assert row["pairs"] == 2 and (row["estimate"], row["low"]) == pytest.approx((1.5, 1.5))


def test_a_longer_trace_is_a_setting_and_no_repeat() -> None:
    runs = runs_of({"a": [1.0, 1.1]}).assign(**{"workload.repeat": [1, 24]})
    assert len(summarize(runs, [TPOT])) == 2


def test_a_zero_makes_it_a_difference() -> None:
    """No logarithm, and leaving the zeros out would flatter who has them."""
    row = only(runs_of({"a": [2.0, 2.1, 1.9, 2.0], "b": [0.0, 0.1, 0.0, 0.0]}, GOODPUT), GOODPUT)
    assert (row["scale"], row["pairs"], row["verdict"]) == ("difference", 4, "98.8 % lower")
    assert row["estimate"] == pytest.approx(-1.975) and row["low"] < -1.975 < row["high"] < 0
    assert only(runs_of({"a": [0.0] * 3, "b": [1.0, 1.1, 0.9]}, GOODPUT), GOODPUT)["verdict"] == "higher, from zero"
    assert only(runs_of({"a": [0.0] * 3, "b": [0.0] * 3}, GOODPUT), GOODPUT)["verdict"] == "within noise"


def test_what_follows_from_the_compared_column_does_not_hinder_a_pair() -> None:
    """The device of a plan, the numbers of a model: equal wherever the column is."""
    runs = runs_of({"a": [1.0, 1.0], "b": [2.0, 2.0]})
    runs["model.layers"] = runs["policy"].map({"a": 16, "b": 32})
    assert only(runs)["pairs"] == 2
    runs["model.layers"] = [16, 32, 32, 16]
    assert list(compare(runs, [TPOT], "policy", "a")["pairs"]) == [0, 0]


def test_what_only_the_base_has_does_not_hinder_a_pair() -> None:
    """Methods with 1 and 3 drafts, each beside no method, which has none, at the same batch."""
    settings = [("null", 0, 1.0), ("ngram", 1, 0.9), ("ngram", 3, 0.7)]
    runs = pd.DataFrame(
        [
            {"run": f"{batch}{method}{k}", "status": "ok", "method": method, "k": k, "batch": batch, TPOT: batch * tpot}
            for batch in (1, 4)
            for method, k, tpot in settings
        ]
    )
    found = compare(runs, [TPOT], "method", "null")
    assert found[["k", "batch"]].to_numpy().tolist() == [[1, 1], [3, 1], [1, 4], [3, 4]]
    assert found["estimate"].tolist() == pytest.approx([0.9, 0.7, 0.9, 0.7])
    seeds = runs.assign(seed=[0, 1, 1, 2, 1, 1])  # other requests
    assert compare(seeds, [TPOT], "method", "null")["pairs"].tolist() == [0, 0, 0, 0]


def test_runs_that_are_equal_in_all_pair_one_by_one() -> None:
    """Two folders of the same sweep: every run counts once."""
    runs = runs_of({"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0]})
    twice = pd.concat([runs, runs.assign(run="again/" + runs["run"])], ignore_index=True)
    assert only(twice)["pairs"] == 6


def test_repeats_decided_while_they_ran_have_a_wider_interval() -> None:
    rng = np.random.default_rng(0)
    values = {"a": list(rng.lognormal(size=40)), "b": list(rng.lognormal(size=40))}
    fixed, auto = only(runs_of(values, repeats=40)), only(runs_of(values, repeats="auto"))
    logs = np.log(np.array(values["b"]) / np.array(values["a"]))
    assert auto["low"] <= math.exp(logs.mean() - confidence_halfwidth(logs, sequential=True)) < fixed["low"]


def test_outliers_are_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = runs_of({"a": [1.0, 1.01, 0.99, 1.02, 1.0, 5.0], "b": [1.0, 1.01, 0.99, 1.02, 0.98, 1.0]})
    assert list(outliers(runs, [TPOT])) == [""] * 10 + ["tpot_p50_s", ""]
    assert list(summarize(runs, [TPOT])["outliers"]) == [1, 0]
    assert summarize(runs, [TPOT])[TPOT][0] == pytest.approx(10.02 / 6), "never dropped"
    assert only(runs)["outliers"] == 1 and only(runs)["pairs"] == 6
    for row in runs.to_dict("records"):
        write_run(tmp_path / row.pop("run"), row | {"error": None})
    assert main(["collect", str(tmp_path)]) == 0
    assert "outlier, counted all the same: 10: tpot_p50_s" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "table.csv")["outlier"].dropna()) == ["tpot_p50_s"]


def write(folder: Path, runs: pd.DataFrame) -> None:
    for row in runs.to_dict("records"):
        write_run(folder / row.pop("run"), {"error": "ValueError: no" if row["status"] == "failed" else None} | row)


def test_the_printed_comparison_says_what_its_numbers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, runs_of({"a": [1.0, 2.0, math.nan], "b": [1.5, 3.0, 1.0]}))
    assert main(["collect", str(tmp_path), "--compare", "policy=a"]) == 0
    shown = capsys.readouterr().out
    for part in ("verdict", "50 % slower", "ratio", "95 % confidence", "6 runs, 1 failed", "failed: 4"):
        assert part in shown
    assert "one in 20" not in shown
    write(tmp_path, runs_of({"a": [1.0, 2.0], "b": [1.5, 3.0], "c": [1.5, 3.0]}))
    assert main(["collect", str(tmp_path), "--compare", "policy=a"]) == 0
    assert "2 intervals at 95 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "policy"], "names no value"),
        (["--compare", "polcy=a"], "'polcy' was not swept; the runs differ in policy (a, b)"),
        (["--compare", "policy=c"], "no run has policy=c; found a, b"),
        (["--compare", "policy=a", "--metrics", "goodput"], "no run has the metric 'goodput'; there are tpot_p50_s"),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, runs_of({"a": [1.0, 2.0], "b": [1.5, 3.0]}))
    assert main(["collect", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_runs_that_all_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, runs_of({"a": [math.nan] * 2, "b": [math.nan] * 2}).drop(columns=TPOT))
    assert main(["collect", str(tmp_path)]) == 0
    assert "4 runs, 4 failed" in capsys.readouterr().out
    assert main(["collect", str(tmp_path), "--compare", "policy=a"]) == 2
    assert "all 4 runs failed: nothing to compare; the first: ValueError: no" in capsys.readouterr().err


def test_rows_of_other_versions_are_joined_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older version knew neither repeats nor a later key, and wrote a metric as text."""
    write(tmp_path / "new", runs_of({"a": [1.0, 2.0], "b": [1.5, 3.0]}, **{"env.commit": "2", "cache.new": 1}))
    old = runs_of({"a": [1.0], "b": [1.5]}, **{"env.commit": "1", "seed": 7, "list": [1]}).drop(columns=["repeat"])
    write(tmp_path / "old", old)
    write_run(tmp_path / "text", {"status": "ok", "error": None, "policy": "b", TPOT: "fast", "seed": 9})
    assert main(["collect", str(tmp_path)]) == 0
    assert main(["collect", str(tmp_path), "--compare", "policy=a"]) == 0
    shown = capsys.readouterr().out
    assert "The runs are not of one environment: env.commit (2 values)." in shown and "50 % slower" in shown


def simulated(rng: np.random.Generator, num: int, factor: float) -> pd.DataFrame:
    """TPOT of pairs that serve the same requests on a machine with 2 % of noise, and now and then a neighbour."""
    load = rng.lognormal(0, 0.2, num)
    noise = rng.lognormal(0, 0.02, (2, num)) * np.where(rng.random((2, num)) < 0.05, 1.2, 1.0)
    return runs_of({"a": list(0.01 * load * noise[0]), "b": list(0.01 * factor * load * noise[1])})


@pytest.mark.parametrize("num_pairs", [5, 12])
def test_of_200_comparisons_of_equals_at_most_18_are_called_different(num_pairs: int) -> None:
    rng = np.random.default_rng(num_pairs)
    verdicts = [only(simulated(rng, num_pairs, 1.0))["verdict"] for _ in range(200)]
    assert sum(verdict != "within noise" for verdict in verdicts) <= 18


def test_a_step_that_is_3_percent_longer_is_found_in_60_pairs() -> None:
    rng = np.random.default_rng(0)
    verdicts = [only(simulated(rng, 60, 1.03))["verdict"] for _ in range(30)]
    assert sum(verdict.endswith("slower") for verdict in verdicts) >= 27
