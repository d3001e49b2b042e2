"""The quality experiment as users start it, and its numbers against transformers in float64."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments import quality as experiment
from experiments.quality_job import measure
from framework.cli import main
from framework.config import CacheConfig, ModelConfig, QuantConfig
from framework.corpus import load_corpus
from framework.engine.tokenizer import load_tokenizer
from framework.models.hub import resolve_model
from framework.study.compose import BaselineConfig, QualityConfig
from framework.study.results import config_columns, write_run

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
TINY = ModelConfig("tiny", dtype="float32")


def quality(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    command = [sys.executable, experiment.__file__, *arguments, "device=cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done, [json.loads(path.read_text()) for path in sorted(folder.rglob("run.json"))]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text(load_corpus().heldout[0].text[:6000], encoding="utf-8")
    return path


def test_a_sweep_leaves_a_row_per_run_also_of_the_failed_and_joins_serving_runs(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, (failed, fp8) = quality(tmp_path, "-m", "kernels.linear=nonsense,auto", "cache=fp8", f"text={text}", "window_tokens=256")
    assert (failed["status"], fp8["status"], done.returncode) == ("failed", "ok", 0), done.stderr
    assert "no kernel for linear=nonsense" in failed["error"] and "no kernel for linear=nonsense" in done.stderr
    for part in ("bits per byte", "KL divergence", "agreement", "paged_attention_prefill", "2 runs in", "1 failed"):
        assert part in done.stdout
    assert 3e-4 < fp8["metric.kl_mean"] < 1e-2 and fp8["metric.top1_agreement"] < 1 and fp8["metric.kl_mean_se"] > 0
    assert fp8["metric.num_tokens"] == 255 * fp8["metric.num_windows"]
    assert fp8["plan.paged_attention_prefill.calls"] > 0 and fp8["env.device"] == "cpu"
    served = QualityConfig(cache=CacheConfig(dtype="float8_e4m3fn"), kernels={"default": "auto", "linear": "auto"}).engine()
    write_run(tmp_path / "outputs" / "served", {**config_columns(served), "metric.output_tokens_per_s": 5.0, "status": "ok"})
    assert main(["collect", "--join", str(tmp_path / "outputs")]) == 0
    assert f"{fp8['metric.kl_mean']:.4g}" in capsys.readouterr().out


def test_a_failed_run_exits_with_an_error(tmp_path: Path, text: Path) -> None:
    done, (row,) = quality(tmp_path, f"text={text}", "window_tokens=2048", "num_windows=9")
    assert done.returncode != 0 and row["status"] == "failed"
    for said in (row["error"], done.stderr):
        assert f"text={text} has " in said and "9 windows of 2048 (window_tokens) take 18423" in said


def test_bits_per_byte_and_divergence_are_those_of_transformers(text: Path) -> None:
    """tiny-draft beside tiny: two windows, in float64, from the text on."""
    config = QualityConfig(
        model=ModelConfig("tiny-draft", dtype="float32"),
        baseline=BaselineConfig(model="tiny"),
        text=str(text),
        window_tokens=128,
        num_windows=2,
        device="cpu",
        num_threads=1,
    )
    found = measure(config).metrics
    tokenizer = load_tokenizer(resolve_model("tiny"))
    ids, content = tokenizer.encode(text.read_text(), add_special_tokens=False), text.read_text()
    second = len(ids) // 127 // 2
    windows = [ids[i * 127 : (i + 1) * 127] for i in (0, second)]
    num_bytes = sum(len(tokenizer.decode(window).encode()) for window in windows)
    assert content.startswith(tokenizer.decode(windows[0]))
    batch = torch.tensor([[tokenizer.bos_token_id, *window] for window in windows])
    logs = []
    for name in ("tiny-draft", "tiny"):
        model = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=torch.float64, attn_implementation="eager")
        with torch.inference_mode():
            logs.append(model(batch).logits[:, :-1].log_softmax(-1))
    q, p = logs
    kl = (p.exp() * (p - q)).sum(-1)
    bits = -q.gather(2, batch[:, 1:, None]).sum().item() / math.log(2)
    assert found["num_tokens"] == 254 and found["num_bytes"] == num_bytes
    assert found["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert found["kl_mean"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found["kl_p99"] == pytest.approx(kl.flatten().quantile(0.99).item(), rel=1e-4)
    assert found["top1_agreement"] == pytest.approx((q.argmax(-1) == p.argmax(-1)).double().mean().item(), abs=1 / 254)


def few(**changed: object) -> QualityConfig:
    changed = {
        "model": TINY,
        "window_tokens": 160,
        "num_windows": 4,
        "batch_windows": 4,
        "device": "cpu",
        "num_threads": 1,
        **changed,
    }
    return QualityConfig(**changed)  # type: ignore[arg-type]


def test_the_unquantized_model_beside_itself_loses_nothing() -> None:
    metrics = measure(few(kernels={"default": "torch"})).metrics
    assert (metrics["kl_mean"], metrics["kl_p99"], metrics["top1_agreement"], metrics["bits_per_byte_increase"]) == (0, 0, 1, 0)
    metrics = measure(few()).metrics
    assert 0 < metrics["kl_mean"] < 1e-8, "other kernels, the same arithmetic"


@pytest.mark.parametrize("chunk_tokens", [1, 64])
def test_caches_lose_what_they_are_known_to_lose(chunk_tokens: int) -> None:
    """In nats per token: int8 5e-5, e4m3 1.2e-3, e5m2 4.9e-3 of another text; by decode and by prefill kernels."""
    found = [
        measure(few(cache=CacheConfig(dtype=dtype), chunk_tokens=chunk_tokens)).metrics["kl_mean"]
        for dtype in ("int8", "float8_e4m3fn", "float8_e5m2")
    ]
    for value, known in zip(found, (5e-5, 1.2e-3, 4.9e-3)):
        assert known / 3 < value < known * 3


def test_quantized_weights_lose_more_and_take_less() -> None:
    schemes = ("none", "int8-weight", "rtn-int4")
    found = [measure(few(quant=QuantConfig(scheme, group_size=64))).metrics for scheme in schemes]
    losses, sizes = ([metrics[name] for metrics in found] for name in ("kl_mean", "weight_bytes"))
    assert losses[0] < 1e-8 < 1e-5 < losses[1] < 1e-2 < losses[2] < 0.1
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


def test_a_quantized_checkpoint_is_measured_against_the_one_that_it_was_made_from() -> None:
    folder = next(path.parent for path in sorted(CHECKPOINTS.glob("*/model.safetensors")))
    with pytest.raises(ValueError, match=rf"{folder.name}' is quantized: name the checkpoint it was made from with baseline.model"):
        measure(few(model=ModelConfig(str(folder))))


def test_what_has_no_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokenizer, which quality over a text needs"):
        measure(few(model=ModelConfig("tiny", skip_tokenizer=True)))
    with pytest.raises(ValueError, match=r"quant\.scheme='int3'"):
        measure(few(quant=QuantConfig("int3")))
