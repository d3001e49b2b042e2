"""The load experiment as users start it, against a server on a schedule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import load as experiment
from framework.cli import main
from framework.study.workload import WorkloadConfig, build_workload
from tests.framework.study.load.stub_server import answering, serving


def load(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, experiment.__file__, *arguments, "workload.num_requests=4", "workload=random"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def rows(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("run.json"))]


@pytest.mark.slow
def test_a_sweep_over_servers_is_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(answering(0.01, 0.01)) as quick, serving(answering(0.01, 0.2)) as slow:
        done = load(tmp_path, "-m", f"http.url={quick.url},{slow.url},http://127.0.0.1:9", "primary_metric=tpot_p50_s", "seed=5")
    first, second, third = rows(tmp_path / "outputs" / "load")
    assert (first["status"], second["status"], third["status"]) == ("ok", "ok", "failed"), done.stderr
    assert (first["http.url"], second["http.url"]) == (quick.url, slow.url)
    assert first["metric.tpot_p50_s"] < 0.1 < 0.19 < second["metric.tpot_p50_s"]  # a client may see two answers late, not early
    assert "no server answers at http://127.0.0.1:9" in third["error"]
    given = WorkloadConfig(num_requests=4, seed=5, prompt_tokens=512, output_tokens=128)
    prompts = sorted(request.prompt_token_ids for request in build_workload(given, 2048, None))
    assert sorted(asked.body["prompt"] for asked in quick.asked[2:]) == prompts  # after two of warm-up
    assert "TTFT (ms)" in done.stdout and "counted_by token_ids" in done.stdout
    assert main(["collect", str(tmp_path), "--compare", f"http.url={quick.url}", "--metrics", "tpot_p50_s"]) == 0
    assert "3 runs, 1 failed" in capsys.readouterr().out


def test_a_typo_asks_nobody(tmp_path: Path) -> None:
    with serving(answering(0.0)) as stub:
        done = load(tmp_path, f"http.url={stub.url}", "http.concurrency=3")
    assert done.returncode != 0 and "concurrency" in done.stderr and not stub.asked
