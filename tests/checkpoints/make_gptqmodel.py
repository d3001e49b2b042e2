"""Checkpoints of GPTQModel: GPTQ in both of its formats.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 safetensors filelock threadpoolctl \
        packaging device-smi protobuf pillow requests pypcre tokenicer logbar jinja2 ninja datasets dill torchao==0.18.0 defuser \
        "setuptools>=84.2.1,<85"
    env/bin/pip install --no-deps --no-build-isolation gptqmodel==7.7.0    # it asks for torch>=2.14.1, and works with this one
    GPTQMODEL_CPU_WORKERS=2 env/bin/python tests/checkpoints/make_gptqmodel.py [NAME ...]

A torch without a GPU does; the variable is for machines of two cores, on which the tool refuses its own default.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import base_models
import numpy as np
import recording
import reference
import torch

recording.offline()
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its kernels compile themselves

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402


@dataclass(frozen=True)
class Checkpoint:
    has: str
    settings: dict[str, Any]
    kind: str = "llama"
    layers: int = 1


def gptq(bits: int, group_size: int, sym: bool = True, desc_act: bool = False, **others: Any) -> dict[str, Any]:
    return {"bits": bits, "group_size": group_size, "sym": sym, "desc_act": desc_act, "act_group_aware": False, **others}


RULES = {
    r"-:model\.layers\.0\.self_attn\.o_proj": {},
    r"+:model\.layers\.0\.mlp\.down_proj": {"bits": 8, "group_size": 64},
    r".*\.1\.mlp\.(gate|up)_proj": {"bits": 8, "group_size": -1},
    r"-:.*\.1\.self_attn\.[qkv]_proj": {},
}
NOTE = (
    "format gptq (v1): the one is subtracted from whole words of qzeros, not from fields (3 bits: from fields): a zero point of 0 "
    "borrows from the next field, and only adding to words undoes it. gptq_v2 stores zero points as they are"
)
CHECKPOINTS = {
    "gptq_act_order": Checkpoint("4 bits, symmetric, group 32, act-order: g_idx is no ramp", gptq(4, 32, desc_act=True)),
    "gptq_asym": Checkpoint("4 bits, asymmetric, group 64, biases", gptq(4, 64, sym=False), "qwen2"),
    "gptq_asym_act_order": Checkpoint("4 bits, asymmetric, group 32, act-order", gptq(4, 32, sym=False, desc_act=True)),
    "gptq_v2": Checkpoint("format gptq_v2: 4 bits, asymmetric, group 64", gptq(4, 64, sym=False, format="gptq_v2")),
    "gptq_dynamic": Checkpoint(
        "rules by layer: +: 8 bits of group 64, one without a sign: 8 bits of one group, -: left plain",
        gptq(4, 32, dynamic=RULES),
        layers=2,
    ),
    "gptq_w8": Checkpoint("8 bits, symmetric, one group (group_size -1)", gptq(8, -1)),
    "gptq_w3": Checkpoint("3 bits, symmetric, group 128", gptq(3, 128)),
    "gptq_w2_asym": Checkpoint("2 bits, asymmetric, group 32", gptq(2, 32, sym=False)),
    "gptq_moe": Checkpoint("experts and attention in 4 bits, symmetric, group 64; router plain", gptq(4, 64), "qwen3_moe"),
}


def dequantizer(config: dict[str, Any]) -> Callable[[str, reference.Module], np.ndarray | None]:
    """The definition that a quantization_config names."""
    stored_minus = 0 if config.get("checkpoint_format", config.get("format")) == "gptq_v2" else 1

    def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
        if "qweight" not in module:
            return None
        return reference.gptq(module, 32 * module["qzeros"].shape[1] // module["scales"].shape[1], stored_minus)

    return dequantize


def own_logits(folder: Path) -> tuple[np.ndarray, str]:
    """Of GPTQModel's loader with its torch kernel, and which kernel that was."""
    awq = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "awq"
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):  # it writes logs/
        copy = shutil.copytree(folder, Path(work) / "copy")
        base_models.tokenizer().save_pretrained(copy)  # it loads none without
        backend = BACKEND.TORCH_AWQ if awq else BACKEND.TORCH
        model = GPTQModel.load(str(copy), backend=backend, device="cpu", dtype=torch.float16).model
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    return reference.logits(
        model
    ), f"GPTQModel.load with {type(model.model.layers[-1].mlp)} {type(model.model.layers[0].self_attn.k_proj)}"


def make(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        base = base_models.save(Path(work) / "base", checkpoint.kind, checkpoint.layers)
        model = GPTQModel.load(str(base), QuantizeConfig(**checkpoint.settings, device="cpu"))
        tokens = base_models.calibration().tolist()
        model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens], batch_size=1)
        model.save(f"{work}/made")
        folder = recording.keep(Path(work) / "made", name)
    own, path = own_logits(folder)
    recording.record(
        folder,
        tool="GPTQModel",
        packages=("gptqmodel", "transformers", "torch"),
        has=checkpoint.has,
        settings=checkpoint.settings,
        dequantize=dequantizer(json.loads((folder / "config.json").read_text())["quantization_config"]),
        base=base_models.build(checkpoint.kind, checkpoint.layers),
        own={"logits": own},
        own_path=path,
        notes=[NOTE] if checkpoint.settings.get("sym") is False else [],
    )


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
