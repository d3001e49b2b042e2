"""Checkpoints of transformers' own fp8: ``quant_method: fp8`` with ``weight_scale_inv``.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
    env/bin/python tests/checkpoints/make_transformers.py [NAME ...]

A torch without a GPU does: transformers' check for one is passed over, for its quantization itself is plain torch.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import base_models
import numpy as np
import recording
import reference
import torch

recording.offline()

from transformers import AutoModelForCausalLM, FineGrainedFP8Config  # noqa: E402
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer  # noqa: E402


@dataclass(frozen=True)
class Checkpoint:
    has: str
    settings: dict[str, Any]
    kind: str = "llama_mha"


# Not here: experts, which it saves without scales, and matrices that blocks do not tile: plain, beside a scale of random bytes.
CHECKPOINTS = {
    "fp8_block": Checkpoint(
        "quant_method fp8: blocks of 128 x 128, weight_scale_inv, modules_to_not_convert",
        {"weight_block_size": (128, 128), "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]},
    ),
    "fp8_tensor": Checkpoint("quant_method fp8: no blocks, one weight_scale_inv for a matrix", {"weight_block_size": None}),
}


def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
    return reference.fp8(module) if "weight_scale_inv" in module or "weight_scale" in module else None


def make(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as work:
        base = base_models.save(Path(work) / "base", checkpoint.kind)
        config = FineGrainedFP8Config(**checkpoint.settings)
        with mock.patch.object(FineGrainedFP8HfQuantizer, "validate_environment"):
            model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
        model.save_pretrained(f"{work}/made")
        folder = recording.keep(Path(work) / "made", name)
    tensors, group = reference.read(folder), 128 if checkpoint.settings["weight_block_size"] else None

    def quantize_input(module: str, x: torch.Tensor) -> torch.Tensor:
        return reference.per_token(x, "fp8", 448, group) if f"{module}.weight_scale_inv" in tensors else x

    quantized = reference.logits(reference.load(folder, reference.plain(tensors, dequantize)), quantize_input)
    own = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True), attn_implementation="eager"
    )
    for parameter in own.parameters():
        parameter.data = parameter.data.float()
    recording.record(
        folder,
        tool="transformers",
        packages=("transformers", "torch"),
        has=checkpoint.has,
        settings=checkpoint.settings,
        dequantize=dequantize,
        base=base_models.build(checkpoint.kind),
        own={"logits": reference.logits(own)},
        extra={"logits_quantized_activations": (quantized, "as logits, and inputs rounded with |max| / 448 of a token or group")},
        own_path="from_pretrained(dtype=float32, FineGrainedFP8Config(dequantize=True))",
    )


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
