"""A report says what the runs say: every part of the page from a table whose answers are known."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from framework.cli import main
from framework.study.compose import StudyConfig, hydra_version_base, register_schema, saved_commands
from framework.study.drawing import INK
from framework.study.labels import number_text
from framework.study.report_page import MAX_ROWS, Report, build_report, without_path, without_paths
from framework.study.report_writing import to_html, to_markdown, write_report
from framework.study.results import collect, write_run

ROOT = Path(__file__).parents[3]
DATA = ROOT / "notebooks" / "data" / "chunk_size_simulated"
ERROR = "MemoryError: /home/me/models/big is too big"
HOSTILE = "</pre><script>alert(1)</script>|`a`|$x^{$ <img src=x onerror=alert(2)> [b](javascript:c) \x07\x1b[31m"


def write_study(folder: Path) -> None:
    """Two policies at two loads, two repeats of each; the second policy is twice as slow at its second load; then two failures."""
    number = 0
    for policy in ("fcfs", "slo"):
        for rate in (1.0, 2.0):
            for seed in (0, 1):
                ttft = (0.1 + 0.01 * seed) * (2 if (policy, rate) == ("slo", 2.0) else 1)
                row = {"name": "overload", "question": "Which policy keeps its word?", "scheduler.policy": policy, "seed": seed}
                row |= {"workload.rate": rate, "cache.block_size": 16, "metrics": json.dumps(["ttft_p50_s"])}
                row |= {"compare": "scheduler.policy=fcfs", "figures": json.dumps(["lines y=ttft_p50_s", "timeline"])}
                row |= {"env.start_time": f"2026-01-0{seed + 1}T00:00:00+00:00", "env.cpu": "EPYC", "plan.sample": "torch"}
                write_run(folder / str(number), {**row, "metric.ttft_p50_s": ttft, "status": "ok", "error": None})
                number += 1
    for number in (8, 9):
        write_run(folder / str(number), {"name": "overload", "status": "failed", "error": ERROR})


def report_of(folder: Path) -> Report:
    return build_report(folder, collect(folder))


def test_every_part_of_a_report(tmp_path: Path) -> None:
    write_study(tmp_path)
    report = report_of(tmp_path)
    assert (report.title, report.questions) == ("overload", ["Which policy keeps its word?"])
    assert report.facts == "10 runs, 2 failed; 2026-01-01 to 2026-01-02"
    assert report.alarms == ["2 of 10 runs failed, see below; the table and the figures are of the others."]
    assert report.swept == {"scheduler.policy": "fcfs, slo", "seed": "0, 1", "workload.rate": "1, 2"}
    assert report.fixed == {"cache.block_size": "16"}
    assert report.failures == {"runs 8, 9": "MemoryError: PATH/big is too big"}
    assert (report.environment, report.ran) == ({"cpu": "EPYC"}, {"sample": "torch"})
    results, compared = report.tables
    assert results.header == ["policy", "rate", "repeats", "TTFT p50 (ms)"]
    # Student's t with one degree of freedom: 12.7 standard errors of 5 ms.
    assert results.rows[0] == ["fcfs", "1", "2", "105 ± 64"] and results.rows[3] == ["slo", "2", "2", "210 ± 127"]
    assert [row[:4] for row in compared.rows] == [["slo", "1", "TTFT p50 (ms)", "2"], ["slo", "2", "TTFT p50 (ms)", "2"]]
    assert compared.rows[1][4].startswith("×2 (")
    (lines,) = report.drawings
    assert lines.kind == "lines" and lines.caption.endswith("(y=ttft_p50_s)")
    assert len(report.figure_notes) == 1 and report.figure_notes[0].startswith("timeline: no finished run")
    assert "not kept" in report.command_notes[0]


def test_the_page_and_its_twin_hold_everything_and_need_nothing_else(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("report*")} == {"report.html", "report.md", "report.csv", "report-1-lines.png"}
    page, twin = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for text in (html.unescape(page), twin):
        for part in ("Which policy keeps its word?", "105 ± 64", "MemoryError: PATH/big is too big", "EPYC", "2 of 10 runs failed"):
            assert part in text
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')> ]+)", page)
    assert all(address.startswith("#") for address in addresses) and "<script" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert "var(--ink)" in page and INK not in page.split("<body>")[1]
    assert "![Metrics over a swept number" in twin and "(report-1-lines.png)" in twin
    assert len(pd.read_csv(tmp_path / "report.csv")) == 4


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    for number in (0, 1):
        row = {"name": HOSTILE, "question": HOSTILE, "model.name": f"{HOSTILE}{number}", "metric.ttft_p50_s": 0.1 + number}
        write_run(tmp_path / str(number), {**row, "env.cpu": HOSTILE, "status": "ok", "error": None})
    write_run(tmp_path / "2", {"name": HOSTILE, "model.name": "c", "status": "failed", "error": f"ValueError: ```\n{HOSTILE}"})
    report = report_of(tmp_path)
    assert [drawing.kind for drawing in report.drawings] == ["bars"]
    page, twin = to_html(report), to_markdown(report, ["bars.png"])
    assert not re.search(r"<(script|img)", page) and "alert(1)" in page  # shown, in words and in the figure
    assert not re.search(r"[\x00-\x08\x0e-\x1f]", page + twin)
    outside = re.sub(r"(?ms)^(`{3,})\n.*?\n\1$", "", twin)
    assert "````\nValueError: ```" in twin and not re.search(r"<(script|img)", outside)
    assert not re.search(r"(?<!\\)\[b", outside)
    cells = [line for line in outside.splitlines() if line.startswith("| ")]
    assert cells and all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4) for line in cells)


def test_a_study_of_which_all_runs_failed_says_so(tmp_path: Path) -> None:
    for number in range(3):
        write_run(tmp_path / str(number), {"model.name": f"m{number}", "status": "failed", "error": "ValueError: no"})
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "All 3 runs failed: there are no results." in page and "runs 0, 1, 2" in page and "<figure>" not in page
    assert not (tmp_path / "report.csv").exists()


def test_what_one_run_states_wrongly_is_said_and_stops_nothing(tmp_path: Path) -> None:
    write_study(tmp_path)
    before = report_of(tmp_path)
    row = json.loads((tmp_path / "3" / "run.json").read_text())
    row |= {"figures": '["pie y=1"]', "metrics": "no list", "compare": "speed=1"}
    write_run(tmp_path / "3", row)
    report = report_of(tmp_path)
    assert [note for note in report.figure_notes if note.startswith("pie y=1: figure 'pie y=1': there is no kind 'pie'")]
    assert "No run has the metric 'no list', which the study states." in report.alarms
    assert [alarm for alarm in report.alarms if alarm.startswith("What the study states cannot be compared: 'speed' was not swept")]
    assert [table.rows for table in report.tables] == [table.rows for table in before.tables]
    assert len(report.drawings) == len(before.drawings)


def test_nothing_to_report_on_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run.json" in capsys.readouterr().err
    write_study(tmp_path)
    for words, expected in (
        (["--output", str(tmp_path / "report.pdf")], "must end in .html"),
        (["--figure", "pie"], "there is no kind 'pie'; there are latency"),
        (["--metrics", "speed"], "no run has the metric 'speed'"),
        (["--compare", "cache.block_size=16"], "'cache.block_size' was not swept"),
    ):
        assert main(["report", str(tmp_path), *words]) == 2
        assert expected in capsys.readouterr().err


def test_thousands_of_runs_stay_readable(tmp_path: Path) -> None:
    rows = [
        {"run": str(i), "workload.rate": i, "status": "ok" if i % 2 else "failed", "metric.ttft_p50_s": i / 1e3}
        | {"error": f"ValueError: {i % 40}" if i % 2 == 0 else None}
        for i in range(4000)
    ]
    report = build_report(tmp_path, pd.DataFrame(rows))
    (results,) = report.tables
    assert len(results.rows) == MAX_ROWS and f"The first {MAX_ROWS} of 2000 settings" in results.notes[-1]
    assert report.swept == {"workload.rate": "0 to 3999 (4000 values)"}
    assert len(report.failures) == 13 and "and 88 more" in next(iter(report.failures))
    written = write_report(report, tmp_path / "page.html")
    assert sum(path.stat().st_size for path in written[:2]) < 1_500_000
    assert len(pd.read_csv(tmp_path / "page.csv")) == 2000


def test_figures_are_chosen_by_what_was_swept() -> None:
    runs = collect(DATA)
    assert [drawing.kind for drawing in build_report(DATA, runs).drawings] == ["load", "pareto"]
    budgets = runs[runs["workload.rate"] == 8]
    assert [drawing.kind for drawing in build_report(DATA, budgets).drawings] == ["lines", "latency", "pareto"]
    assert [drawing.kind for drawing in build_report(DATA, budgets, figures=["timeline"]).drawings] == ["timeline"]


def test_paths_of_the_machine_stay_there() -> None:
    for text, expected in (
        ("no file /home/me/data/azure.csv", "no file PATH/azure.csv"),
        ("workload.path=/data/a.csv,/data/b.csv", "workload.path=PATH/a.csv,PATH/b.csv"),
        ("~/models/x", "PATH/x"),
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("outputs/x/0 1/2 tokens/s", "outputs/x/0 1/2 tokens/s"),
        (r"C:\Users\me\x.txt", "PATH/x.txt"),
    ):
        assert without_path(text) == expected
    two = without_paths(pd.DataFrame({"model.name": ["/a/m", "/b/m", "/a/m"]}))["model.name"]
    assert list(two) == ["PATH/m", "PATH/m (1)", "PATH/m"]


def test_numbers_have_the_digits_that_count() -> None:
    assert [number_text(x) for x in (0.123456, 12345.6, float("nan"), 1e-5, 0.0)] == ["0.1235", "12,346", "-", "1e-05", "0"]


def test_the_command_is_that_of_the_sweep(tmp_path: Path) -> None:
    """Files as Hydra itself writes them."""
    words = ["experiment=chunk_size", "workload.path=/data/azure trace.csv", "compare='a=1'", "name='$(x)'", "seed=1,2"]
    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), job_name="serve", **hydra_version_base()):
        saved = compose("serve", return_hydra_config=True)
    OmegaConf.set_readonly(saved.hydra, False)
    saved.hydra.overrides.task = words
    saved.hydra.overrides.hydra = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=/x", "hydra/launcher=joblib"]
    (tmp_path / "sweep" / "0" / ".hydra").mkdir(parents=True)
    for path in (tmp_path / "sweep" / "multirun.yaml", tmp_path / "sweep" / "0" / ".hydra" / "hydra.yaml"):
        OmegaConf.save(saved, path)
    (command,) = saved_commands([tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"])
    assert """ 'workload.path=/data/azure trace.csv' "compare='a=1'" """ in command
    assert shlex.split(command) == ["python", "experiments/serve.py", "-m", *words, "hydra/launcher=joblib"]
    (tmp_path / "sweep" / "multirun.yaml").rename(tmp_path / "kept.yaml")
    assert saved_commands([tmp_path / "sweep" / "0"]) == [command.replace(" -m", "")]
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: [")
    assert saved_commands([tmp_path / "sweep" / "0"]) == []
    (tmp_path / "kept.yaml").rename(tmp_path / "sweep" / "multirun.yaml")
    write_run(tmp_path / "sweep" / "0", {"status": "ok", "error": None})
    report = report_of(tmp_path)
    assert "'workload.path=PATH/azure trace.csv'" in report.commands[0] and "PATH stands for" in report.command_notes[0]


def test_a_study_whose_report_cannot_be_made_does_not_start() -> None:
    for study, message in (
        (StudyConfig(figures=["lines x=workload.rate z=speed"]), "lines takes no option 'z'; it takes x, y, where"),
        (StudyConfig(figures=["heatmap x=seed"]), "heatmap needs y="),
        (StudyConfig(compare="fcfs"), "compare=fcfs names no value"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            study.validate()


def test_a_table_stands_for_its_folder(tmp_path: Path) -> None:
    write_study(tmp_path / "runs")
    assert main(["collect", str(tmp_path / "runs"), "--output", str(tmp_path / "table.csv")]) == 0
    assert main(["report", str(tmp_path / "table.csv")]) == 0
    from_runs, from_table = report_of(tmp_path / "runs"), build_report(tmp_path, collect(tmp_path / "table.csv"))
    assert from_table.tables == from_runs.tables and from_table.swept == from_runs.swept
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no table of runs"):
        collect(tmp_path / "other.csv")
