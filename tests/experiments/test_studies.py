"""The studies of conf/experiment: small runs of each, and what is committed of the full ones."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments import serve as command
from experiments.serve_job import serve
from framework.study.compose import compose
from framework.study.metrics import compute_metrics
from framework.study.report import format_metrics
from framework.study.time_shares import PARTS

ROOT = Path(__file__).parents[2]
STUDIES = {path.stem: path for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))}
RESULTS = ROOT / "experiments" / "study_results"
OURS = sorted(set(STUDIES) - {"beside_transformers"})
"""The other has tests of its own."""
SMALL = ("workload.num_requests=3", "workload.max_output_tokens=4", "workload.max_prompt_tokens=300")


def swept(name: str) -> dict[str, list[str]]:
    """Key -> the values that a study asks for."""
    params = yaml.safe_load(STUDIES[name].read_text())["hydra"]["sweeper"]["params"]
    parser = OverridesParser.create()
    return {key: list(parser.parse_override(f"{key}={values}").sweep_string_iterator()) for key, values in params.items()}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_short_and_says_what_it_asks(name: str) -> None:
    lines = STUDIES[name].read_text().splitlines()
    study = yaml.safe_load("\n".join(lines))
    assert len(lines) <= 25
    assert study["name"] == name, "its runs lie below outputs/NAME"
    assert study["question"].endswith("?")


@pytest.mark.parametrize(("name", "which"), itertools.product(OURS, ("first", "last")))
def test_a_study_serves_requests(name: str, which: str) -> None:
    index = {"first": 0, "last": -1}[which]
    values = [f"{key}={found[index]}" for key, found in swept(name).items()]
    model = ["model=tiny"] if name == "kernel_choice" else []  # the other ones cost no memory and no time
    config = compose([f"experiment={name}", *values, *SMALL, *model], ROOT / "conf")
    metrics = compute_metrics(serve(replace(config, device="cpu")).record, config.slo)
    assert metrics["num_completed"] == 3 and metrics["ttft_p50_s"] > 0


def test_a_row_of_speculation_has_acceptance_and_the_shares_of_time() -> None:
    values = [f"{key}={found[-1]}" for key, found in swept("speculation").items()]
    small = ("workload.num_requests=3", "workload.output_tokens=12", "workload.max_prompt_tokens=100", "num_warmup_requests=1")
    config = replace(compose(["experiment=speculation", *values, *small], ROOT / "conf"), device="cpu")
    metrics = serve(config).metrics(config)
    assert metrics["mean_acceptance_length"] >= 1 and 0 <= metrics["acceptance_rate_pos0"] <= 1
    assert 0 < sum(metrics[f"{part}_share"] for part in PARTS) < 1
    assert "tokens per request and step; of the time: drafting" in format_metrics(metrics)


def test_the_command_runs_a_study(tmp_path: Path) -> None:
    arguments = ("-m", "experiment=policy", "scheduler.policy=fcfs,slo", "repeats=1", *SMALL)
    done = subprocess.run([sys.executable, command.__file__, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("outputs/policy/*/*/run.json"))]
    assert [(row["scheduler.policy"], row["status"]) for row in rows] == [("fcfs", "ok"), ("slo", "ok")]
    assert rows[0]["workload.path"] == "stand-in", "without a file the row says so"


@pytest.mark.parametrize("name", OURS)
def test_what_is_committed_is_what_the_study_asks(name: str) -> None:
    runs = pd.read_csv(RESULTS / name / "table.csv", low_memory=False)
    params, repeats = swept(name), yaml.safe_load(STUDIES[name].read_text()).get("repeats", 1)
    assert set(runs["status"]) == {"ok"} and len(runs) == repeats * len(list(itertools.product(*params.values())))
    for key, values in params.items():
        column = f"choice.{key.removeprefix('kernels.')}" if key.startswith("kernels.") else key
        if column in runs:  # groups of the configuration are no columns
            assert runs[column].nunique() == len(values)
    text = (RESULTS / name / "README.md").read_text()
    assert f"experiment={name}" in text and (RESULTS / name / "figure.png").stat().st_size > 10_000


def test_the_readme_shows_a_whole_study_and_the_figure_that_it_makes() -> None:
    text = (ROOT / "README.md").read_text()
    shown = next(name for name, path in STUDIES.items() if f"```yaml\n{path.read_text().strip()}\n```" in text)
    figure = f"experiments/study_results/{shown}/figure.png"
    assert f"({figure})" in text and (ROOT / figure).is_file()
    assert all(f"| `{name}` |" in text for name in OURS)
