"""Random adapters of small models, as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from framework import LoRARequest
from framework.config import ModelConfig
from framework.models.lora.adapter import adaptable_parts
from framework.models.read import read_model

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_tiny_adapter(
    folder: Path, number: int, rank: int = 4, targets: Sequence[str] = LINEARS, model: ModelConfig | None = None
) -> LoRARequest:
    """targets: ends of modules' names. Another number is another adapter. model: None: the embedded one."""
    architecture, generator = read_model(model or ModelConfig("tiny")).architecture, torch.Generator().manual_seed(number)
    assert architecture is not None
    tensors = {}
    for name, part in adaptable_parts(architecture).items():
        pattern = "lora_embedding_{}" if name == "embed" else "lora_{}.weight"
        for source, rows in zip(part.sources, part.rows, strict=True):
            if source.endswith(tuple(targets)):
                columns = part.columns or 0
                sizes = (rows, columns) if name == "embed" else (columns, rows)
                for matrix, shape in (("A", (rank, sizes[0])), ("B", (sizes[1], rank))):
                    values = torch.randn(shape, generator=generator) * columns**-0.5
                    tensors[f"base_model.model.{source}.{pattern.format(matrix)}"] = values
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8 * rank, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return LoRARequest(f"adapter-{number}", number, str(folder))
