"""Adapters of random numbers, in peft's format, for studies of what they cost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from framework.config import ModelConfig
from framework.executor.kinds import EXECUTORS
from framework.lora_request import LoRARequest
from framework.models.read import read_model
from framework.study.compose import ServeConfig


@contextmanager
def made_up_adapters(config: ServeConfig) -> Iterator[ServeConfig]:
    """The config with the folder of its workload's adapters, which is gone afterwards if they were made for it."""
    workload = config.workload
    if not workload.num_loras or workload.lora_folder is not None:
        yield config
        return
    if config.system != "kernelswap":
        raise ValueError(f"workload.num_loras={workload.num_loras} cannot work: system={config.system} takes no adapters")
    with tempfile.TemporaryDirectory() as folder:
        if EXECUTORS[config.executor.kind].has_device:
            for i in range(1, workload.num_loras + 1):
                write_adapter(Path(folder) / str(i), config.model, workload.lora_rank, i, config.lora.target_modules)
        yield replace(config, workload=replace(workload, lora_folder=folder))


def load_adapters(engine: Any, config: ServeConfig) -> None:
    """Before time is measured, as many as the host holds."""
    for i in range(1, min(config.workload.num_loras, config.lora.num_host_loras) + 1):
        engine.add_lora(LoRARequest(f"adapter-{i}", i, f"{config.workload.lora_folder}/{i}"))


def write_adapter(folder: Path, model: ModelConfig, rank: int, seed: int, target_modules: list[str] | None = None) -> None:
    """On all linear layers of the model's layers. What they add is small beside what the layer computes. target_modules: as of
    LoraConfig. Raises ValueError for a model that takes no adapters."""
    import torch
    from safetensors.torch import save_file

    from framework.models.lora.adapter import adaptable_parts

    info = read_model(model)
    if info.architecture is None:
        raise ValueError(f"{model.name} takes no adapters, which are of native models; {info.reason}")
    dtype, generator = getattr(torch, info.dtype), torch.Generator().manual_seed(seed)
    tensors, targets = {}, []
    for name, part in adaptable_parts(info.architecture, target_modules).items():
        for source, rows in zip(part.sources, part.rows) if name.startswith("layers.") else ():
            targets.append(source)
            for matrix, shape in (("A", (rank, part.columns or 0)), ("B", (rows, rank))):
                values = torch.randn(shape, generator=generator) * 0.1 * shape[1] ** -0.5
                tensors[f"base_model.model.{source}.lora_{matrix}.weight"] = values.to(dtype)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
