"""Files of runs, the table built from them, and the statistics of the table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from framework.cli import collect as collect_command
from framework.cli import main
from framework.config import EngineConfig
from framework.study.comparison import compare, summarize
from framework.study.compose import ServeConfig
from framework.study.environment import environment
from framework.study.records import RequestRecord
from framework.study.results import (
    REQUESTS_FILE,
    RUN_FILE,
    collect,
    collect_requests,
    config_columns,
    plan_columns,
    write_requests,
    write_run,
)
from framework.study.sweep import differences, differences_text, select, swept_columns
from framework.study.workload import WorkloadConfig

METRIC = "metric.ttft_p50_s"


def write_sweep(folder: Path) -> None:
    """Two samplers x two seeds, torch twice as slow for seed 1 and four times for seed 2; then a run that failed."""
    times = {("triton", 1): 0.1, ("triton", 2): 0.2, ("torch", 1): 0.2, ("torch", 2): 0.8}
    for number, ((sampler, seed), value) in enumerate(times.items()):
        config = EngineConfig(kernels={"sample": sampler, "linear": "auto"}, seed=seed)
        write_run(folder / str(number), {**config_columns(config), METRIC: value, "status": "ok", "error": None})
        write_requests(folder / str(number), [RequestRecord("0", 0, 0.0, 5, [value], "stop")])
    config = EngineConfig(kernels={"sample": "none", "linear": "auto"})
    write_run(folder / "10", {**config_columns(config), "status": "failed", "error": "NoKernelError: no kernel\nfor sample"})


def test_rows_name_the_trace_and_no_folder() -> None:
    given = WorkloadConfig(source="trace", path="/home/someone/azure.csv")
    assert config_columns(ServeConfig(workload=given))["workload.path"] == "azure.csv"
    assert config_columns(ServeConfig(workload=WorkloadConfig(source="trace", format="azure")))["workload.path"] == "stand-in"
    assert config_columns(ServeConfig())["workload.path"] is None
    assert given.path == "/home/someone/azure.csv"


def test_rows_are_flat_and_name_choice_and_plan(tmp_path: Path) -> None:
    config = EngineConfig(kernels={"sample": "torch"}, plugins=["a.py"])
    report = {"sample": {"impl": "torch", "chosen": "name", "origin": "kernelswap", "version": "1", "calls": 7}}
    write_run(
        tmp_path, {**config_columns(config), **plan_columns(report), "workload.rate": math.inf, "status": "ok", "error": None}
    )
    row = json.loads((tmp_path / "run.json").read_text())
    assert all(value is None or isinstance(value, str | int | float | bool) for value in row.values())
    found = {
        key: row[key]
        for key in (
            "choice.sample",
            "plan.sample",
            "plan.sample.chosen",
            "plan.sample.calls",
            "cache.block_size",
            "plugins",
            "workload.rate",
        )
    }
    assert found == {
        "choice.sample": "torch",
        "plan.sample": "torch",
        "plan.sample.chosen": "name",
        "plan.sample.calls": 7,
        "cache.block_size": 0,
        "plugins": '["a.py"]',
        "workload.rate": "inf",
    }


def test_requests_file(tmp_path: Path) -> None:
    write_requests(tmp_path, [RequestRecord("0", 3, 1.0, 5, [1.5, 2.0], "length"), RequestRecord("1", 0, 1.0, 9, error="too long")])
    served, refused = csv.DictReader((tmp_path / "requests.csv").open())
    assert (served["ttft_s"], served["tpot_s"], served["e2e_s"], served["num_output_tokens"]) == ("0.5", "0.5", "1", "2")
    assert (refused["status"], refused["ttft_s"], refused["error"]) == ("refused", "", "too long")


def test_the_table_has_every_run_again_and_again(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    first = collect(tmp_path)
    assert list(first["run"]) == ["0", "1", "2", "3", "10"]
    assert list(first["status"]) == ["ok"] * 4 + ["failed"]
    first.to_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(first, collect(tmp_path))
    assert swept_columns(first) == ["seed", "choice.sample"]
    assert list(collect_requests(tmp_path, first)["run"]) == ["0", "1", "2", "3"]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        collect(tmp_path)


def test_select_compares_numbers_as_numbers() -> None:
    runs = pd.DataFrame({"workload.rate": [4.0, 8.0], "choice.sample": ["torch", "triton"]})
    assert list(select(runs, "workload.rate", "4").index) == [0]
    assert list(select(runs, "choice.sample", "triton").index) == [1]
    for column, value, message in (
        ("workload.rate", "5", "found 4, 8"),
        ("workload.rte", "4", r"differ in workload.rate \(4, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            select(runs, column, value)


@pytest.mark.parametrize("content", ["", '{"name": "serve", "see', "[1]", "null", '{"name": "serve"}'])
def test_a_file_without_a_row_is_a_failed_run_and_harms_no_other(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "0", {"status": "ok", "error": None, METRIC: 1.0})
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / RUN_FILE).write_text(content)
    assert list(collect(tmp_path)["status"]) == ["ok", "failed"]
    assert main(["collect", str(tmp_path)]) == 0
    assert "failed: 1: run.json holds no row" in capsys.readouterr().out


def test_a_metric_that_is_infinite_or_that_no_run_observed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, value in enumerate((1.0, math.inf)):
        write_run(tmp_path / str(i), {"status": "ok", "error": None, METRIC: value, "seed": i})
    assert list(collect(tmp_path)[METRIC]) == [1.0, math.inf]
    assert main(["collect", str(tmp_path)]) == 0
    assert "tpot_p50_s" not in capsys.readouterr().out
    assert main(["collect", str(tmp_path), "--metrics", "tpot_p50_s"]) == 2
    assert main(["collect", str(tmp_path), "--output", str(tmp_path / "no" / "table.csv")]) == 2


def test_rows_without_an_error_and_tables_with_words_for_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "0", {"status": "failed"})
    assert main(["collect", str(tmp_path)]) == 0 and "failed: 0: no error was written" in capsys.readouterr().out
    assert main(["collect", str(tmp_path), "--compare", "seed=1"]) == 2
    table = tmp_path / "edited.csv"
    table.write_text(f"run,status,seed,{METRIC}\n0,ok,1,fast\n1,ok,1,2.5\n")
    assert list(collect(table)[METRIC].dropna()) == [2.5] and main(["collect", str(table)]) == 0
    table.write_text("run,status,seed\n")
    assert main(["collect", str(table), "--compare", "seed=1"]) == 2
    assert "a table without a run" in capsys.readouterr().err


def test_requests_are_those_of_finished_runs(tmp_path: Path) -> None:
    """A run that was killed may have left half of its file."""
    for i, status in enumerate(("ok", "failed")):
        write_run(tmp_path / str(i), {"status": status, "error": None})
    write_requests(tmp_path / "0", [])
    (tmp_path / "1" / REQUESTS_FILE).write_text("")
    assert collect_requests(tmp_path, collect(tmp_path)).empty
    head = (tmp_path / "0" / REQUESTS_FILE).read_text()
    for mangled, said in (("a,b\n1,2\n", ""), (head + ",".join(["1", "0", "ok", "soon"] + [""] * 12), ".*string .?soon")):
        (tmp_path / "0" / REQUESTS_FILE).write_text(mangled)
        with pytest.raises(ValueError, match=rf"0/requests\.csv does not hold the requests of a run{said}"):
            collect_requests(tmp_path, collect(tmp_path))


def test_select_takes_truth_as_hydra_writes_it() -> None:
    runs = pd.DataFrame({"cache.prefix_caching": [True, False, None], "status": "ok"})
    assert list(select(runs, "cache.prefix_caching", "false").index) == [1]
    with pytest.raises(ValueError, match="found true, false"):
        select(runs, "cache.prefix_caching", "yes")


def test_an_absent_cell_is_no_value(tmp_path: Path) -> None:
    """Ops and keys come while a study grows: rows that lack them differ from the others in nothing that was asked for."""
    for number, (sampler, value) in enumerate((("torch", 0.1), ("triton", 0.2), ("torch", 0.3), ("triton", 0.4))):
        row = {
            "choice.sample": sampler,
            "seed": number // 2,
            "cache.num_blocks": None,
            METRIC: value,
            "status": "ok",
            "error": None,
        }
        later = {"choice.merge_attention": "auto", "model.new": 1.5} if number > 1 else {}
        write_run(tmp_path / str(number), row | later)
    runs = collect(tmp_path)
    assert swept_columns(runs) == ["choice.sample", "seed"]
    assert list(summarize(runs, [METRIC]).columns) == ["choice.sample", "repeats", METRIC, f"{METRIC}.ci95"]
    (row,) = compare(runs, [METRIC], "choice.sample", "torch").to_dict("records")
    assert row["pairs"] == 2 and row["estimate"] == pytest.approx(math.sqrt(2 * 4 / 3))
    assert list(select(runs, "choice.merge_attention", "auto")["run"]) == ["2", "3"]
    with pytest.raises(ValueError, match=r"found auto$"):
        select(runs, "choice.merge_attention", "nan")


def test_runs_without_the_compared_column_are_left_out() -> None:
    runs = pd.DataFrame({"status": "ok", "choice.sample": ["torch", "triton", None], METRIC: [0.1, 0.2, 0.4]})
    (row,) = compare(runs, [METRIC], "choice.sample", "torch").to_dict("records")
    assert (row["choice.sample"], row["pairs"]) == ("triton", 1)


def test_a_key_set_to_nothing_is_a_value(tmp_path: Path) -> None:
    for number, blocks in enumerate((None, 64)):
        write_run(tmp_path / str(number), {"cache.num_blocks": blocks, "model.revision": None, "status": "ok", "error": None})
    runs = collect(tmp_path)
    assert swept_columns(runs) == ["cache.num_blocks"] and runs["error"].isna().all()
    assert [list(select(runs, "cache.num_blocks", value)["run"]) for value in ("null", "64")] == [["0"], ["1"]]


def unrelated_runs() -> pd.DataFrame:
    """Of two studies and three models, whose 30 numbers follow from the name."""
    rows = [
        {"status": "ok", "name": "a" if rate < 3 else "b", "model.name": model, "workload.rate": rate, "seed": rate}
        | {f"model.architecture.{i}": len(model) + i for i in range(30)}
        for model in ("x", "yy", "zzz")
        for rate in (1, 2, 3, 4)
    ]
    return pd.DataFrame(rows)


def test_differences_are_the_few_columns_that_tell_runs_apart() -> None:
    assert differences(unrelated_runs()) == {"workload.rate": ["1", "2", "3", "4"], "model.name": ["x", "yy", "zzz"]}
    assert differences_text(unrelated_runs()).endswith("model.name (x, yy, zzz) and 30 more")
    for ask in (lambda: select(unrelated_runs(), "rate", "4"), lambda: compare(unrelated_runs(), [], "rate", "4")):
        with pytest.raises(ValueError, match=r"model.name \(x, yy, zzz\) and 30 more") as caught:
            ask()
        assert len(str(caught.value)) < 200


def test_repeats_are_averaged_with_their_interval(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    table = summarize(collect(tmp_path), [METRIC]).set_index("choice.sample")
    assert list(table["repeats"]) == [2, 2]
    assert table.loc["triton", METRIC] == pytest.approx(0.15)
    # Two values 0.1 and 0.2: standard error 0.05, times Student's t for one degree of freedom.
    assert table.loc["triton", f"{METRIC}.ci95"] == pytest.approx(0.05 * 12.706, rel=1e-3)


def test_comparison_pairs_runs_by_seed(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    row, failed = compare(collect(tmp_path), [METRIC], "choice.sample", "triton").to_dict("records")
    assert (row["choice.sample"], row["pairs"], row["runs"]) == ("torch", 2, 2)
    assert (failed["choice.sample"], failed["pairs"], failed["runs"], failed["verdict"]) == ("none", 0, 1, "no pair")
    assert row["estimate"] == pytest.approx(math.sqrt(2 * 4))
    assert row["low"] < row["estimate"] < row["high"]
    with pytest.raises(ValueError, match="was not swept"):
        compare(collect(tmp_path), [METRIC], "cache.block_size", "16")
    with pytest.raises(ValueError, match="found triton, torch"):
        compare(collect(tmp_path), [METRIC], "choice.sample", "cutlass")


def test_collect_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    write_sweep(tmp_path)
    parser = argparse.ArgumentParser()
    collect_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["collect", str(tmp_path), "--metrics", "ttft_p50_s"])
    assert args.run(args) == 0
    shown = capsys.readouterr().out
    assert "triton" in shown and "failed: 10: NoKernelError: no kernel\n" in shown and "5 runs, 1 failed" in shown
    assert len(pd.read_csv(tmp_path / "table.csv")) == 5


def test_environment_names_versions_and_no_places() -> None:
    import platform

    found = environment(EngineConfig(device="cpu"))
    assert found["env.python"] == platform.python_version()
    assert found["env.device"] == "cpu" and "env.torch" in found
    text = json.dumps(found)
    assert platform.node() not in text and str(Path.home()) not in text and str(Path.cwd()) not in text
