"""Checkpoints of bitsandbytes, through transformers: NF4 with and without double quantization, and LLM.int8.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 bitsandbytes==0.50.2 transformers==5.23.0 accelerate==1.15.0
    env/bin/python tests/checkpoints/make_bitsandbytes.py [NAME ...]

A torch without a GPU does.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import base_models
import numpy as np
import recording
import reference
import torch

recording.offline()

import bitsandbytes  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402


@dataclass(frozen=True)
class Checkpoint:
    has: str
    settings: dict[str, Any]
    kind: str = "llama"


CHECKPOINTS = {
    "bnb_nf4": Checkpoint("NF4, blocks of 64", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "bnb_nf4_double": Checkpoint(
        "NF4, blocks of 64, the blocks' maxima in 8 bits (double quantization), biases",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "qwen2",
    ),
    "bnb_int8": Checkpoint("LLM.int8: rows of int8", {"load_in_8bit": True}),
}


def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
    if "SCB" in module:  # the largest magnitude of each row
        return module["weight"].astype(np.float64) * module["SCB"].astype(np.float64)[:, None] / 127
    states = [leaf for leaf in module if leaf.startswith("weight.quant_state.")]
    if not states:
        return None
    state = json.loads(bytes(module[states[0]]))
    maxima = module["weight.absmax"].astype(np.float64)
    if "nested_blocksize" in state:
        nested = np.repeat(module["weight.nested_absmax"].astype(np.float64), state["nested_blocksize"])
        codes = module["weight.nested_quant_map"].astype(np.float64)[module["weight.absmax"]]
        maxima = codes * nested[: len(codes)] + state["nested_offset"]
    packed = module["weight"].ravel()  # of [N, K] in rows, the first of two values in the high nibble
    values = module["weight.quant_map"].astype(np.float64)[np.stack([packed >> 4, packed & 15], -1).ravel()]
    return (values * np.repeat(maxima, state["blocksize"])[: len(values)]).reshape(state["shape"])


def make(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as work:
        base = base_models.save(Path(work) / "base", checkpoint.kind)
        config = BitsAndBytesConfig(**checkpoint.settings)
        model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
        model.save_pretrained(f"{work}/made")
        folder = recording.keep(Path(work) / "made", name)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager")
    if name == "bnb_int8":
        own = own.dequantize().float()  # its product rounds inputs to int8
    else:
        weights = {name: parameter.double().numpy() for name, parameter in own.state_dict().items() if ".weight." not in name}
        for module_name, module in own.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                state = module.weight.quant_state
                state.dtype = torch.float32  # else the weights are rounded to the float model's bfloat16
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
                weights[f"{module_name}.weight"] = weight.double().numpy()
        own = reference.load(folder, weights)
    recording.record(
        folder,
        tool="bitsandbytes",
        packages=("bitsandbytes", "transformers", "torch"),
        has=checkpoint.has,
        settings=checkpoint.settings,
        dequantize=dequantize,
        base=base_models.build(checkpoint.kind),
        own={"logits": reference.logits(own)},
        own_path="from_pretrained(dtype=float32) with bitsandbytes on a CPU, its weights dequantized by itself to float32",
    )


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
