"""The comparison with transformers, on a model of a few thousand weights: both must give the same tokens."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "peers_cpu.py"
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.mark.slow
def test_both_engines_serve_the_same_requests(tmp_path: Path) -> None:
    overrides = [f"model.architecture.{key}={value}" for key, value in SHAPE.items()]
    command = [
        sys.executable,
        str(SCRIPT),
        *overrides,
        "dtypes=[float32]",
        "rounds=2",
        "workloads.batch=[[9,4],[20,7],[3,2]]",
        "workloads.single=[[5,6]]",
        "threads=1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "outputs" / "peers_cpu" / "rows.csv").open()))
    assert len(rows) == 2 * 2 * 2
    assert {row["engine"] for row in rows} == {"kernelswap", "transformers"}
    assert all(float(row["agreement"]) == 1.0 and float(row["wall_s"]) > 0 for row in rows)
    assert "float32 batch kernelswap" in done.stdout and "1.00x" in done.stdout
