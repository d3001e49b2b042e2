"""``kernelswap kernels``: what users see, and the exit codes that scripts rely on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from framework.cli import main

WRONG = """
from triton_kernels.impl import impl


@impl("silu_and_mul", "wrong")
def wrong(x):
    return x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :]
"""


@pytest.fixture
def wrong_plugin(tmp_path: Path) -> str:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    return str(path)


def test_list_shows_impls_plugins_and_load_failures(capsys: pytest.CaptureFixture[str], wrong_plugin: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no such luck')")
    assert main(["kernels", "list", "silu_and_mul", "--plugin", wrong_plugin, "--plugin", str(broken)]) == 0
    out = capsys.readouterr().out
    header, op, *impls = [line for line in out.partition("\n\n")[0].splitlines() if "failed" not in line]
    assert header.split() == ["kernel", "here", "priority", "devices", "promises"] and op == "silu_and_mul"
    assert {"reference", "torch", "wrong"} <= {line.split()[0] for line in impls}
    assert "RuntimeError: no such luck" in " ".join(out.split())


def test_list_says_why_a_triton_kernel_cannot_run_on_a_cpu_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["kernels", "list", "silu_and_mul"]) == 0
    short = capsys.readouterr().out
    assert "interpret=true" not in short and "--why" in short
    assert main(["kernels", "list", "silu_and_mul", "--why"]) == 0
    lines = iter(capsys.readouterr().out.splitlines())
    assert next(line for line in lines if line.startswith("  triton ")).split()[1] == "no"
    why, options, origin = (next(lines) for _ in range(3))
    assert "interpret=true" in why and "options: block:0" in options and "from: triton_kernels.impls.silu_and_mul" in origin


def test_list_says_which_adapters_never_met_their_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list", "sample", "--why"]) == 0
    assert capsys.readouterr().out.count("unproven: never met its library") == 1


@pytest.mark.parametrize("more", [[], ["-v"]])
def test_the_whole_list_fits_100_columns(capsys: pytest.CaptureFixture[str], more: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('a long story, ' * 30)")
    assert main(["kernels", "list", *more, "--plugin", str(broken)]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 100] == []
    assert len(out.splitlines()) > 100 and "paged_attention_prefill" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["list", "nonsense"], "the ops are"),
        (["compile", "linear:nonsense", "--target", "sm_90"], "there are"),
        (["compile", "linear:torch", "--target", "sm_90"], "no Triton kernel"),
        (["compile", "--target", "sm_90"], "--all"),
        (["compile", "silu_and_mul", "--jobs", "0"], "--jobs"),
        (["roofline", "linear", "--device", "abacus"], "h200"),
    ],
)
def test_what_cannot_be_done_is_said(capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    assert main(["kernels", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_check_tells_right_from_wrong(capfd: pytest.CaptureFixture[str], wrong_plugin: str) -> None:
    """A child process does the work, because Triton decides at import whether it interprets."""
    words = ["kernels", "check", "silu_and_mul:torch", "silu_and_mul:wrong", "silu_and_mul:triton"]
    assert main([*words, "--dtype", "fp32", "--plugin", wrong_plugin]) == 1
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if " fp32 " in line and line.endswith(("ok", "FAILED"))]
    verdicts = {name: {words[-1] for words in lines if words[0] == f"silu_and_mul:{name}"} for name in ("torch", "wrong", "triton")}
    assert verdicts["torch"] == verdicts["triton"] == {"ok"}
    assert "FAILED" in verdicts["wrong"]


def test_compile_writes_artifacts_and_verdicts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    output, table = tmp_path / "artifacts.json", tmp_path / "loops.csv"
    targets = ["--target", "sm_90", "--target", "gfx942"]
    words = ["silu_and_mul:triton", "slot_mapping:triton", *targets, "--output", str(output), "--table", str(table)]
    assert main(["kernels", "compile", *words, "--jobs", "2"]) == 0
    out, progress = capsys.readouterr()
    assert "0 violations" in out
    content = json.loads(output.read_text())
    num_cases = len(content["compilations"])
    assert f"{num_cases}/{num_cases}" in progress
    assert [entry["target"] for entry in content["compilations"]] == ["sm_90"] * (num_cases // 2) + ["gfx942"] * (num_cases // 2)
    with table.open() as file:
        loops = [row for row in csv.DictReader(file) if row["target"] == "sm_90"]
    assert {row["kernel"].partition("/")[0] for row in loops} == {"slot_mapping:triton"}, "only loops with loads or products"
    assert all(int(row["instructions"]) > int(row["lsu"]) > 0 and row["buffers"] == "0" and row["wait"] == "" for row in loops)
    assert "main loop" in out and "slot_mapping:triton/_slot_mapping_kernel 1" in out
    (artifact,) = content["compilations"][0]["artifacts"]
    assert artifact["target"] == "sm_90" and artifact["kernel"] == "gated_kernel"
    assert artifact["spills"] == 0 and artifact["wide_loads"] >= 2 and artifact["registers"] > 0
    assert content["failures"] == []


PEER = """
import triton
import triton.language as tl
from triton_kernels.impl import impl

@triton.jit
def peer_kernel(x, out, N, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, N, BLOCK):
        acc += tl.load(x + at + tl.arange(0, BLOCK)).to(tl.float32)
    tl.store(out + tl.arange(0, BLOCK), acc.to(out.dtype.element_ty))

@impl("silu_and_mul", "peer", requires=("triton",), devices=("cuda",))
def peer(x):
    out = x.new_empty(x.shape[0], x.shape[1] // 2)
    peer_kernel[(3, 5)](x, out, x.shape[1], BLOCK=1024)
    return out
"""


def test_compile_shows_main_loops_beside_those_of_peers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A loop's turns come from the arguments of the launch; peers are held to no gates."""
    pytest.importorskip("triton")
    folder, table = tmp_path / "peers", tmp_path / "loops.csv"
    folder.mkdir()
    (folder / "peer.py").write_text(PEER)
    words = ["kernels", "compile", "silu_and_mul:triton", "--peers", str(folder), "--target", "sm_90", "--table", str(table)]
    assert main([*words, "--case", "2048 tokens"]) == 0
    shown = capsys.readouterr().out
    (row,) = [row for row in csv.DictReader(table.open()) if row["kernel"] == "silu_and_mul:peer/peer_kernel"]
    assert (row["turns"], row["loaded_bytes"]) == ("28", "2048") and float(row["cap_us"]) > 0 and 0 < float(row["waves"]) < 1
    assert row["kernel"] in shown and "0 violations" in shown and "silu_and_mul:triton/gated_kernel" in shown


def test_compile_says_when_no_case_has_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "compile", "silu_and_mul:triton", "--target", "sm_90", "--case", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_roofline_is_bytes_over_bandwidth_for_one_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "roofline", "linear", "--device", "h200"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("1 token"))
    least_us = float(line.removeprefix("1 token").split()[3])
    num_bytes = 2 * (6144 * 4096 + 4096 + 6144)
    assert least_us == pytest.approx(num_bytes / 4.3e12 * 1e6, abs=0.01)


def test_roofline_is_that_of_the_format_of_the_gemms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "roofline", "moe_experts", "--device", "a100"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("qwen3")}
    assert " bf16 " in lines["qwen3-30b-a3b_4096"] and " bf16 " in lines["qwen3-30b-a3b_w4a16_4096"]
    assert " fp8 " in lines["qwen3-30b-a3b_fp8_4096"] and "a100 has none" in lines["qwen3-30b-a3b_fp8_4096"]
