"""Tensors and files of quantized checkpoints that do not fit are refused by name, where their sizes alone would not show it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.config import ModelConfig

from ..harness import build
from ..test_public_checkpoints import FOLDER

Tensors = dict[str, torch.Tensor]


def refused(name: str, folder: Path, message: str, change: Callable[[Tensors], None], cache_dtype: str = "auto") -> None:
    copy = folder / name
    shutil.copytree(FOLDER / name, copy)
    (copy / "expected.safetensors").unlink()
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(str(copy), dtype="float32"), cache_dtype=cache_dtype)


def of(tensors: Tensors, ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


@pytest.mark.parametrize(("name", "ending"), [("gptq_act_order", "q_proj.g_idx"), ("ct_g_idx", "down_proj.weight_g_idx")])
def test_an_order_of_inputs_that_the_config_announces_must_be_there(name: str, ending: str, tmp_path: Path) -> None:
    refused(name, tmp_path, f"missing tensors: .*{ending}", lambda tensors: tensors.__delitem__(of(tensors, ending)))


def test_the_shape_that_packed_weights_say_they_have_counts(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[of(tensors, "down_proj.weight_shape")] = torch.tensor([128, 1])

    refused("ct_w4a16", tmp_path, r"down_proj\.weight_shape is \[128, 1\], but config.json asks for \[128, ", change)


def test_a_zero_point_of_activations_is_one_number(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[of(tensors, "input_zero_point")] = torch.zeros(2, dtype=torch.int8)

    refused("ct_w8a8_static_asym", tmp_path, r"input_zero_point has the shape \(2,\); expected a single number", change)


@pytest.mark.parametrize(
    ("name", "ending", "value"),
    [
        ("gptq_asym", "down_proj.scales", math.nan),
        ("awq", "o_proj.scales", math.inf),
        ("ct_w4a16", "up_proj.weight_scale", -math.inf),
        ("ct_w8a8_static", "q_proj.input_scale", math.nan),
        ("ct_moe_w4a16_asym", "down_proj.weight_scale", math.nan),
        ("ct_fp8_kv", "k_scale", math.nan),
        ("fp8_block", "gate_proj.weight_scale_inv", math.inf),
        ("bnb_int8", "v_proj.SCB", math.nan),
        ("bnb_nf4", "k_proj.weight.absmax", math.nan),
        ("ct_moe_mxfp4", "up_proj.weight_scale", 255),
    ],
)
def test_scales_are_numbers(name: str, ending: str, value: float, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[of(tensors, ending)].view(-1)[-1] = value

    refused(name, tmp_path, rf"{ending} has values that are NaN", change, cache_dtype="float8_e4m3fn")


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("bnb_nf4", {"shape": None}, "has the shape None"),
        ("bnb_nf4", {"blocksize": None}, "blocksize=None; expected a positive number"),
        ("bnb_nf4", {"blocksize": "64"}, "blocksize='64'"),
        ("bnb_nf4", {"blocksize": 32}, r"absmax has shape \(\d+,\), but config.json asks for"),
        ("bnb_nf4_double", {"nested_blocksize": 0}, "nested_blocksize=0"),
        ("bnb_nf4_double", {"nested_blocksize": 1}, r"nested_absmax has shape \(\d+,\), but config.json asks for"),
        ("bnb_nf4_double", {"nested_offset": "x"}, "nested_offset='x'"),
        ("bnb_nf4", [], r"holds \[\]"),
        ("bnb_nf4", None, "is not the JSON"),
    ],
)
def test_what_bitsandbytes_says_of_its_blocks_must_fit(name: str, state: Any, message: str, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        key = of(tensors, "quant_state.bitsandbytes__nf4")
        found = json.loads(bytes(tensors[key].tolist()))
        text = "{" if state is None else json.dumps({**found, **state} if isinstance(state, dict) else state)
        tensors[key] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    refused(name, tmp_path, message, change)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": [1]}', '{"weight_map": {"x": 5}}'])
def test_an_index_without_files_is_refused(content: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "gptq_asym", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="has no weight_map from tensors to files"):
        build(ModelConfig(str(tmp_path / "model"), dtype="float32"))


@pytest.mark.parametrize(("content", "message"), [("[]", "expected an object"), ("{", "is no JSON")])
def test_a_config_that_is_no_object_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(str(tmp_path), dtype="float32"))
