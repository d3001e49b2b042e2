"""``kernelswap quantize``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.cli import main


def test_writes_and_says_what_it_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["quantize", "tiny", str(out), "--scheme", "rtn-int4", "--group-size", "64", "--asym"]) == 0
    printed = capsys.readouterr()
    assert f"{(out / 'model.safetensors').stat().st_size:,} bytes of weights, were 9,908,624 (2." in printed.out
    assert "rtn-int4: 100%" in printed.err
    weights = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["group_size"], weights["symmetric"]) == (64, False)
    assert main(["quantize", "tiny", str(out), "--scheme", "int8"]) == 2
    assert "a new or an empty folder" in capsys.readouterr().err


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "tiny", str(tmp_path / "out"), "--scheme", "gptq-int4"]) == 2
    assert "group_size=128 does not divide the 704 inputs" in capsys.readouterr().err
    for given, words in (
        (("rtn-int4", "--calib", "missing.txt"), "calibration=missing.txt: rtn-int4 does not calibrate, gptq-int4, awq-int4"),
        (("int8", "--asym"), "zero points belong to 4-bit schemes"),
        (("gptq-int4", "--group-size", "64", "--calib", "missing.txt"), "calibration=missing.txt cannot be read"),
    ):
        assert main(["quantize", "tiny", str(tmp_path / "out"), "--scheme", *given]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
