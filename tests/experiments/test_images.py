"""The images experiment: a run in this process, and sweeps as users start them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments import images as experiment
from experiments import images_job
from framework.cli import main
from framework.study.compose import CONFIG_FILE, ImagesConfig, hydra_version_base, save_config, to_config

ROOT = Path(__file__).parents[2]
SMALL = ("num_inference_steps=3", "height=64", "width=64", "device=cpu")


def config(*overrides: str) -> ImagesConfig:
    with initialize_config_dir(str(ROOT / "conf"), **hydra_version_base()):
        return to_config(compose("images", list(overrides)), ImagesConfig)


def test_a_run_leaves_a_row_with_its_plan_and_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    save_config(config(*SMALL, "num_images=2", "kernels.linear=torch"), tmp_path / CONFIG_FILE)
    assert images_job.run(tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    assert (row["status"], row["metric.num_steps"], row["plan.linear"]) == ("ok", 3, "torch") and row["metric.step_p50_s"] > 0
    assert row["plan.library"] == "diffusers+transformers" and "env.diffusers" in row
    assert (tmp_path / "image_0.png").read_bytes() != (tmp_path / "image_1.png").read_bytes()
    assert "3 steps: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_images": 0}, "num_images=0"),
        ({"num_warmup_steps": 0}, "num_warmup_steps=0"),
        ({"shape": {"unet": {}}}, "shape has unet; expected"),
        ({"profile": True}, "profile=True cannot work"),
    ],
)
def test_what_cannot_run_leaves_its_reason(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    asked = config(*SMALL) if "shape" in changes else replace(config(*SMALL), shape={})
    save_config(replace(asked, **changes), tmp_path / CONFIG_FILE)  # type: ignore[arg-type]
    assert not images_job.run(tmp_path)
    assert said in json.loads((tmp_path / "run.json").read_text())["error"]


def test_shapes_are_those_of_stable_diffusion() -> None:
    """Its UNet has 860 million weights."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**config("pipeline=stable-diffusion-1.5").shape["unet"])
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964


@pytest.mark.slow
def test_a_sweep_over_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    swept = "kernels.paged_attention_prefill=torch,auto,nonsense"
    command = [sys.executable, experiment.__file__, "-m", swept, *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    rows = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("run.json"))]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"], done.stderr
    assert rows[0]["plan.paged_attention_prefill"] == "torch" != rows[1]["plan.paged_attention_prefill"]
    assert "no kernel for paged_attention_prefill=nonsense" in rows[2]["error"]
    assert len(list(tmp_path.rglob("image_0.png"))) == 2
    assert main(["collect", str(tmp_path / "outputs" / "images"), "--metrics", "step_p50_s"]) == 0
    assert "step_p50_s" in capsys.readouterr().out
