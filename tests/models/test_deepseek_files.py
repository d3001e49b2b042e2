"""Checkpoints of DeepSeek's as they are published: float8 in blocks, and a module that predicts further tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..framework.models.checkpoints import make
from ..framework.models.harness import build, error, model_config, reference, sequences, teacher_forced
from .examples import EXAMPLES

SIZES = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128, "kv_lora_rank": 128, "q_lora_rank": 128}
HEADS = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "attention_bias": False}
EVERY_EXPERT = {"n_routed_experts": 4, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1}
"""So that what is rounded sends no token elsewhere."""


def blocks_of_float8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(quantized values, a scale for each 128 x 128 of them)."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % 128, 0, -rows % 128))
    blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    scales = blocks.abs().amax((1, 3)).clamp_min(1e-10) / 448
    spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
    return (weight / spread).to(torch.float8_e4m3fn), scales


def test_float8_weights_and_a_module_of_another_depth(tmp_path: Path) -> None:
    example = EXAMPLES["deepseek-v3"]
    example = replace(example, config={**example.config, **SIZES, **HEADS, **EVERY_EXPERT})
    theirs = make(example, tmp_path)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.dim() > 1 and ".layers." in name:  # or layers would enlarge what rounding adds
                parameter.mul_(0.3)
    theirs.save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = {}
    for name, tensor in load_file(file).items():
        quantized = tensor.dim() == 2 and ".layers." in name and not name.endswith("mlp.gate.weight")
        parts = blocks_of_float8(tensor) if quantized else (tensor,)
        tensors |= dict(zip((name, f"{name}_scale_inv"), parts))
    tensors |= {f"model.layers.3.{name}.weight": torch.ones(3) for name in ("eh_proj", "shared_head.norm", "input_layernorm")}
    save_file(tensors, file)
    given = json.loads(config.read_text())
    given["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    given |= {"num_nextn_predict_layers": 1}
    config.write_text(json.dumps(given))
    [row] = sequences((40,))
    [ours] = teacher_forced(build(model_config(tmp_path, example)), [row], 9, num_decodes=4)
    assert error(ours, reference(theirs, row)) < 0.15
