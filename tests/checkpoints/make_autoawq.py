"""Checkpoints of AutoAWQ.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 transformers==4.51.3 "tokenizers<0.22" accelerate safetensors "datasets<5" zstandard \
        huggingface_hub==0.36.0 typing_extensions triton==3.9.0 pillow "numpy<2.5"
    env/bin/pip install --no-deps --no-build-isolation autoawq==0.2.9    # archived: it is made for transformers 4.51 and torch 2.6
    env/bin/python tests/checkpoints/make_autoawq.py [NAME ...]

A torch without a GPU does.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import base_models
import numpy as np
import recording
import reference
import torch

recording.offline()

from awq import AutoAWQForCausalLM  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


@dataclass(frozen=True)
class Checkpoint:
    has: str
    kind: str = "llama"
    settings: dict[str, Any] = field(default_factory=dict)


CHECKPOINTS = {
    "awq": Checkpoint("AWQ GEMM: 4 bits, zero points, group 64, biases", "qwen2", {"q_group_size": 64}),
    "awq_not_converted": Checkpoint(
        "AWQ GEMM: 4 bits, zero points, group 128, modules_to_not_convert",
        settings={"q_group_size": 128, "modules_to_not_convert": ["o_proj", "v_proj"]},
    ),
}


def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
    return reference.awq(module) if "qweight" in module else None


def own_dequantizer(group_size: int) -> Any:
    def own(name: str, module: reference.Module) -> np.ndarray | None:
        if "qweight" not in module:
            return None
        words = [torch.from_numpy(module[leaf]) for leaf in ("qweight", "qzeros")]
        return dequantize_gemm(*words, torch.from_numpy(module["scales"]).float(), 4, group_size).double().numpy().T

    return own


def make(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    settings = {"zero_point": True, "w_bit": 4, "version": "GEMM", **checkpoint.settings}
    with tempfile.TemporaryDirectory() as work:
        base = base_models.save(Path(work) / "base", checkpoint.kind, dtype=torch.float16)
        model = AutoAWQForCausalLM.from_pretrained(str(base), device_map="cpu", safetensors=True)
        model.quantize(
            AutoTokenizer.from_pretrained(base),
            quant_config=settings,
            calib_data=base_models.text(),
            max_calib_samples=16,
            max_calib_seq_len=64,
        )
        model.save_quantized(f"{work}/made", safetensors=True)
        folder = recording.keep(Path(work) / "made", name)
    own = reference.load(folder, reference.plain(reference.read(folder), own_dequantizer(settings["q_group_size"])))
    recording.record(
        folder,
        tool="AutoAWQ",
        packages=("autoawq", "transformers", "torch"),
        has=checkpoint.has,
        settings=settings,
        dequantize=dequantize,
        base=base_models.build(checkpoint.kind),
        own={"logits": reference.logits(own)},
        own_path="awq.utils.packing_utils.dequantize_gemm with float32 scales",
    )


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
