"""What is written: read by the formats' definitions, and by transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import CompressedTensorsConfig

from framework.config import ModelConfig, QuantConfig
from framework.models.parts import layer_parts
from framework.models.quantization.table import read_scheme
from framework.models.read import read_model
from framework.models.weights import Checkpoint
from framework.quantize import cache, cached_checkpoint, output, quantize_checkpoint

from ..models.checkpoints import EXAMPLES, make
from ..models.harness import Session, build
from .formats_by_hand import dequantized, read_tensors
from .small_models import DENSE, MOE, TINY, is_linear, logits, make_model, quant, relative_error

LARGEST_ERROR = {"rtn-int4": 0.08, "int8": 0.005, "int8-weight": 0.005, "fp8": 0.036, "fp8-block": 0.036}
"""Of a weight, relative to the largest in its matrix; a symmetric 4-bit grid clips its end by half a step of 2/15."""


def write(name: str, folder: Path, config: QuantConfig, **keywords: Any) -> tuple[Path, Path]:
    """(float checkpoint, quantized one)."""
    make_model(name, folder / "model")
    quantize_checkpoint(str(folder / "model"), folder / "out", config, progress=False, **keywords)
    return folder / "model", folder / "out"


@pytest.mark.parametrize("scheme", LARGEST_ERROR)
@pytest.mark.parametrize("name", [*DENSE, *MOE])
def test_rounded_checkpoints_by_definition(name: str, scheme: str, tmp_path: Path) -> None:
    model, out = write(name, tmp_path, quant(scheme, group_size=16))
    before, after, stored = read_tensors(model), dequantized(out), read_tensors(out)
    assert set(after) == set(before)
    for key, weight in before.items():
        if is_linear(key):
            error = (after[key] - weight.double()).abs().max() / weight.abs().max()
            assert 0 < error < LARGEST_ERROR[scheme], key
        else:
            assert torch.equal(stored[key], weight), key


@pytest.mark.parametrize("scheme", ["gptq-int4", "awq-int4"])
@pytest.mark.parametrize("name", DENSE)
def test_calibrated_checkpoints_by_definition(name: str, scheme: str, tmp_path: Path) -> None:
    """The logits of the weights as they are stored are near those of the float model. Tied embeddings, biases, norms with an
    offset, layer norms and fused projections are among the models."""
    model, out = write(name, tmp_path, quant(scheme))
    assert 0.01 < relative_error(model, dequantized(out)) < 0.4
    before, stored = read_tensors(model), read_tensors(out)
    for key in before:
        if not is_linear(key) and (scheme == "gptq-int4" or not ("norm" in key or "bias" in key)):
            assert torch.equal(stored[key], before[key]), key


@pytest.mark.parametrize("changes", [{"symmetric": False}, {"group_size": -1}, {"group_size": 16}])
@pytest.mark.parametrize("scheme", ["rtn-int4", "gptq-int4", "awq-int4"])
def test_grids_by_definition(scheme: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model, out = write("qwen2", tmp_path, quant(scheme, **changes))
    assert 0.01 < relative_error(model, dequantized(out)) < 0.4
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    weights = described.get("config_groups", {}).get("group_0", {}).get("weights", {})
    group = described.get("group_size", weights.get("group_size", -1))
    assert group == changes.get("group_size", 32)
    assert described.get("sym", weights.get("symmetric", False)) == (changes.get("symmetric", scheme != "awq-int4"))


def test_act_order_is_stored(tmp_path: Path) -> None:
    model, out = write("llama", tmp_path, quant("gptq-int4"), act_order=True)
    g_idx = read_tensors(out)["model.layers.0.self_attn.q_proj.g_idx"]
    assert g_idx.dtype == torch.int32
    assert torch.bincount(g_idx).tolist() == [32, 32]
    assert (g_idx.diff() < 0).any()
    assert json.loads((out / "quantize_config.json").read_text())["desc_act"] is True
    assert relative_error(model, dequantized(out)) < 0.4


@pytest.mark.parametrize("scheme", ["rtn-int4", "rtn-int4 zeros", "int8-weight", "int8", "fp8"])
@pytest.mark.parametrize("name", ["qwen2", "phi3", "gpt-neox", "mixtral"])
def test_transformers_loads_compressed_tensors(name: str, scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    scheme, _, zeros = scheme.partition(" ")
    if name == "mixtral" and (scheme == "int8" or zeros):
        pytest.skip("transformers has no converter for such experts")
    model, out = write(name, tmp_path, quant(scheme, symmetric=False if zeros else None))
    expected = logits(model, dequantized(out))
    if scheme in ("rtn-int4", "int8-weight") and not zeros:  # the others round activations, or zero points are not unpacked
        torch.testing.assert_close(logits(out), expected, rtol=1e-5, atol=1e-5)
    found = logits(out, quantization_config=CompressedTensorsConfig(dequantize=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_transformers_loads_fp8_blocks(tmp_path: Path) -> None:
    """Its dequantization takes whole blocks only, or one."""
    pytest.importorskip("accelerate")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    make_model("llama", tmp_path / "model", **sizes)
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "out", quant("fp8-block"), progress=False)
    found, expected = logits(tmp_path / "out"), logits(tmp_path / "model", dequantized(tmp_path / "out"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["rtn-int4", "gptq-int4", "awq-int4", "int8-weight", "int8", "fp8", "fp8-block"])
@pytest.mark.parametrize("name", ["qwen2", "phi3"])
def test_the_native_decoder_serves_them(name: str, scheme: str, tmp_path: Path) -> None:
    """Activations that are rounded per token cost a few percent."""
    model, out = write(name, tmp_path, quant(scheme))
    session = Session(build(ModelConfig(str(out), dtype="float32")), num_requests=2)
    tokens = torch.arange(7, 71).view(2, 32)
    found = torch.stack([session.step([(row, ids)])[0] for row, ids in enumerate(tokens.tolist())])
    expected = logits(model, dequantized(out))
    bound = {"int8": 0.05, "fp8": 0.1, "fp8-block": 0.1}.get(scheme, 1e-3)
    assert float((found - expected).norm() / expected.norm()) < bound


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model("llama", tmp_path / "model")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "one", quant("int8"), progress=False)
    monkeypatch.setattr(output.ShardWriter.__init__, "__defaults__", (100_000,))
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "many", quant("int8"), progress=False)
    one, many = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "many")
    assert list(one) and set(one) == set(many)
    assert all(torch.equal(tensor, many[name]) for name, tensor in one.items())
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    for path in (tmp_path / "many").glob("*.safetensors"):
        tensors = [name for name, file in index["weight_map"].items() if file == path.name]
        assert len(tensors) == 1 or sum(one[name].nbytes for name in tensors) <= 100_000
    assert torch.equal(
        logits(tmp_path / "model", dequantized(tmp_path / "many")), logits(tmp_path / "model", dequantized(tmp_path / "one"))
    )


def test_the_rest_is_copied(tmp_path: Path) -> None:
    """A single file, all as before but for the weights and what config.json says of them."""
    out = tmp_path / "out"
    quantize_checkpoint("tiny", out, quant("fp8"), progress=False)
    files = {path.name for path in out.iterdir()}
    assert files == {path.name for path in TINY.iterdir()} - {"README.md"}
    for name in files - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (TINY / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["ignore"] == ["lm_head"]
    assert config == json.loads((TINY / "config.json").read_text())


def test_cache_makes_a_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    text = tmp_path / "text.txt"
    text.write_text("def f(x): return x + 1\n" * 100)
    make_model("llama", tmp_path / "model")
    config = quant("gptq-int4", calibration=str(text))
    first = cached_checkpoint(str(tmp_path / "model"), config)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert cached_checkpoint(str(tmp_path / "model"), config) == first
    assert cached_checkpoint(str(tmp_path / "model"), replace(config, fuse=False)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    others = {cached_checkpoint(str(tmp_path / "model"), quant("gptq-int4", calibration=str(text), group_size=16))}
    text.write_text("another text\n" * 100)
    others.add(cached_checkpoint(str(tmp_path / "model"), config))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    others.add(cached_checkpoint(str(tmp_path / "model"), config))
    assert len(others | {first}) == 4
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {path.name for path in others | {first}}


def test_blocks_over_rows_that_lie_head_by_head_are_served_as_floats(tmp_path: Path) -> None:
    make(EXAMPLES["gpt-neox"], tmp_path / "model")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "out", quant("fp8-block"), progress=False)
    info = read_model(ModelConfig(str(tmp_path / "out"), dtype="float32"))
    assert info.architecture is not None
    a, part = info.architecture, layer_parts(info.architecture, 0)["qkv"]
    scheme = read_scheme(info.quantization, QuantConfig())
    source = Checkpoint(tmp_path / "out", a.family, torch.device("cpu"), torch.float32, scheme)
    (loaded,) = scheme.linear(part, source)
    by_head = dequantized(tmp_path / "out")[f"{part.sources[0]}.weight"].view(a.num_heads, 3, a.head_dim, a.hidden_size)
    expected = torch.cat([by_head[:, i].flatten(0, 1) for i in range(3)])
    assert loaded.op == "linear" and torch.equal(loaded.tensors["weight"], expected.float())  # type: ignore[arg-type]
    assert "dequantized" in loaded.note and torch.equal(loaded.tensors["bias"], source.bias(part))  # type: ignore[arg-type]


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **keywords: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    make_model("llama", tmp_path / "model")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"part-0\.safetensors cannot be written: .*No space left"):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / "out", quant("int8"), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_autoround_by_its_library(tmp_path: Path) -> None:
    pytest.importorskip("auto_round")
    model, out = write("llama", tmp_path, quant("autoround-int4"))
    assert relative_error(model, dequantized(out)) < 0.4
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "auto-round"
    assert {path.name for path in out.iterdir()} >= {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
