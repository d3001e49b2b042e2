"""What cannot be quantized is refused by name, and nothing half-written is left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.quantize import quantize_checkpoint
from framework.quantize.output import ShardWriter

from .small_models import make_model, quant


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model("llama", tmp_path / "model")
    return tmp_path / "model"


def refused(model: Path, scheme: str, message: str, act_order: bool = False, **changes: Any) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_checkpoint(str(model), model.parent / "out", quant(scheme, **changes), act_order=act_order, progress=False)
    assert [path.name for path in model.parent.iterdir() if path.is_dir()] == [model.name]


def test_settings(model: Path) -> None:
    refused(model, "int3", "no scheme 'int3'.*rtn-int4")
    refused(model, "rtn-int4", r"layers\.0\.mlp\.down_proj: group_size=64 does not divide the 96 inputs.*32, 16", group_size=64)
    refused(model, "awq-int4", "act-order belongs to gptq-int4", act_order=True)
    refused(model, "gptq-int4", "6 samples of 97 tokens.*2 to 96", sample_tokens=97)
    refused(model, "gptq-int4", "6 samples of 1 tokens.*2 to 96", sample_tokens=1)
    refused(model, "gptq-int4", "0 samples", num_samples=0)


def test_settings_are_checked_before_weights_are_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.quantize.source.Source.read", lambda *_: pytest.fail("a weight was read"))
    refused(model, "gptq-int4", "does not divide", group_size=64)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "falcon-7b", "mamba2"])
def test_families(name: str, tmp_path: Path) -> None:
    make_model(name, tmp_path / "model")
    message = {
        "gpt2": "transposed",
        "mixtral": "mixtures of experts.*use one of rtn-int4",
        "falcon-7b": "cannot be run one by one",
        "mamba2": "layers keep states.*schemes that round",
    }[name]
    refused(tmp_path / "model", "gptq-int4", message)


def test_sizes_that_do_not_fill_words(tmp_path: Path) -> None:
    make_model("llama", tmp_path / "model", intermediate_size=100)
    refused(tmp_path / "model", "gptq-int4", r"gate_proj is \[200, 64\].*packs eight", group_size=-1)


def test_models(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "rwkv"}))
    refused(model, "int8", "linear layers are not known.*'rwkv'")
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused(model, "int8", r"quantized already \(gptq\)")


@pytest.mark.parametrize("scheme", ["int8", "gptq-int4"])
def test_damaged_files(model: Path, scheme: str) -> None:
    path = model / "model.safetensors"
    whole, tensors = path.read_bytes(), {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(whole[:-1000])
    refused(model, scheme, r"model\.safetensors is missing or not whole")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    refused(model, scheme, rf"missing tensors: {name}")
    save_file({**tensors, name: tensors[name].index_fill(0, torch.tensor([3]), float("nan"))}, path)
    refused(model, scheme, "not finite")


def test_shapes(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, path)
    for scheme in ("int8", "gptq-int4"):
        refused(model, scheme, rf"model.safetensors: tensor {name} has shape \(95, 64\), but config.json asks for \(96, 64\)")


def test_calibration_texts(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("x = 1\n")
    refused(model, "awq-int4", r"short.txt: its longest text has \d tokens, but one sample needs 39", calibration=str(short))
    refused(model, "awq-int4", "cannot be read", calibration=str(tmp_path / "none.txt"))
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    refused(model, "gptq-int4", "tokenizer")


def test_output_folders(model: Path) -> None:
    out = model.parent / "out"
    out.mkdir()
    (out / "kept").write_text("")
    with pytest.raises(ValueError, match=r"out is a folder with 1 entries.*empty"):
        quantize_checkpoint(str(model), out, quant("int8"), progress=False)
    (out / "kept").unlink()
    quantize_checkpoint(str(model), out, quant("int8"), progress=False)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("scheme", ["int8", "gptq-int4"])
def test_interruption_leaves_nothing(model: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(self: ShardWriter, name: str, tensor: torch.Tensor) -> None:
        calls.append(name)
        if len(calls) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(str(model), model.parent / "out", quant(scheme), progress=False)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_autoround_is_an_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auto_round", None)
    refused(model, "autoround-int4", r"pip install 'kernelswap\[autoround\]'")
