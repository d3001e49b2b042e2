"""Experts whose formats differ from each other, or that no single op can multiply, become floats of the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.config import ModelConfig
from framework.models.quantization.canonical import dequantized, integer_weights, scaled_weights
from framework.models.quantization.experts import stack_experts
from framework.models.quantization.scheme import LoadedPart
from framework.models.quantization.unquantized import float_linear

from ...quantize.formats_by_hand import dequantized as by_hand
from ..harness import build, teacher_forced
from ..test_public_checkpoints import FOLDER


def int4(rows: int, num_groups: int, dtype: torch.dtype = torch.float32) -> LoadedPart:
    values = torch.randint(0, 16, (rows, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    return integer_weights(values, torch.full((rows, num_groups), 0.5, dtype=dtype), None, 4)


def blocks(rows: int, columns: int) -> LoadedPart:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(torch.float8_e4m3fn)
    scales = 1.0 + torch.arange(-(-rows // 128) * -(-columns // 128)).view(-(-rows // 128), -1).float()
    return scaled_weights("gemm_fp8", weight, scales, torch.float32, blocks=True)


@pytest.mark.parametrize(
    ("gate_up", "down"),
    [
        ([[int4(8, 2), int4(8, 4)], [int4(8, 2), int4(8, 4)]], [[int4(64, 2)], [int4(64, 2)]]),
        ([[int4(8, 2), int4(8, 2)], [int4(8, 4), int4(8, 4)]], [[int4(64, 2)], [int4(64, 2)]]),
        ([[int4(8, 2), int4(8, 2, torch.bfloat16)]] * 2, [[int4(64, 2)], [int4(64, 2)]]),
        ([[float_linear(torch.ones(8, 64), None), int4(8, 2)]] * 2, [[int4(64, 2)], [int4(64, 2)]]),
        ([[blocks(160, 256), blocks(160, 256)]] * 2, [[blocks(256, 160)]] * 2),
        ([[blocks(160, 128), blocks(160, 128)]] * 2, [[blocks(128, 160)]] * 2),
    ],
    ids=["groups of gate and up", "groups of experts", "dtypes", "floats", "half a block", "half a block of all columns"],
)
def test_experts_of_several_kinds_keep_their_numbers(gate_up: list[list[LoadedPart]], down: list[list[LoadedPart]]) -> None:
    found = stack_experts(gate_up, down, torch.float64)
    assert found.op == "moe_experts" and "dequantized" in found.note
    for name, experts in (("w13", gate_up), ("w2", down)):
        expected = torch.stack([torch.cat([dequantized(part) for part in expert]) for expert in experts])
        assert torch.equal(found.tensors[name], expected)  # type: ignore[arg-type]


def test_blocks_that_span_all_columns_are_blocks() -> None:
    part = blocks(160, 128)
    assert part.tensors["weight"] is not None
    expected = part.tensors["weight"].double()
    expected[128:] *= 2
    assert torch.equal(dequantized(part), expected)


def test_the_first_expert_may_be_stored_as_floats_alone(tmp_path: Path) -> None:
    """A rule exempts it; the others stay quantized on disk, and no logit changes."""
    shutil.copytree(FOLDER / "gptq_moe", tmp_path / "model")
    (tmp_path / "model" / "expected.safetensors").unlink()
    config_file, weights = tmp_path / "model" / "config.json", tmp_path / "model" / "model.safetensors"
    floats, tensors = by_hand(tmp_path / "model"), load_file(weights)
    modules = {name.rpartition(".")[0] for name in tensors if ".experts.0." in name}
    kept = {name: tensor for name, tensor in tensors.items() if ".experts.0." not in name}
    save_file(kept | {f"{module}.weight": floats[f"{module}.weight"].float() for module in modules}, weights)
    config = json.loads(config_file.read_text())
    config["quantization_config"]["dynamic"] = {r"-:.*experts\.0\..*": {}}
    config_file.write_text(json.dumps(config))
    found, expected = (
        teacher_forced(build(ModelConfig(str(folder), dtype="float32"), {"default": "reference"}), [[3, 4, 5, 6, 7]], None, 0)[0]
        for folder in (tmp_path / "model", FOLDER / "gptq_moe")
    )
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5
