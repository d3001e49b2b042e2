"""Reads quantized checkpoints with nothing of the framework: each format's definition in numpy and Python integers, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

Floats = NDArray[np.float64]
AWQ_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, by name."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                assert name not in found
                found[name] = opened.get_tensor(name)
    return found


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """float64 tensors as of the float checkpoint, by name."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = read_tensors(folder)
    read = {"gptq": _gptq, "awq": _awq, "fp8": _fp8_blocks, "compressed-tensors": _compressed, "auto-round": _gptq}
    result: dict[str, torch.Tensor] = {}
    for module in sorted({name.rpartition(".")[0] for name in tensors}):
        own = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] == module}
        if set(own) - {"weight", "bias"}:
            result[f"{module}.weight"] = torch.from_numpy(read[config["quant_method"]](own, config))
        elif "weight" in own:
            result[f"{module}.weight"] = own["weight"].double()
        if "bias" in own:
            result[f"{module}.bias"] = own["bias"].double()
    return result


def _gptq(own: dict[str, torch.Tensor], config: dict[str, Any]) -> Floats:
    """Version 1: nibbles along K (rows of words) and, of the zero points, along N; the zero point is one more than stored."""
    words, zero_words, scales = (_numpy(own[name]) for name in ("qweight", "qzeros", "scales"))
    g_idx = _numpy(own["g_idx"]) if "g_idx" in own else np.arange(8 * len(words)) // (8 * len(words) // len(scales))
    weight = np.empty((words.shape[1], 8 * words.shape[0]))
    for k in range(weight.shape[1]):
        value = (words[k // 8] >> (4 * (k % 8))) & 15
        group = int(g_idx[k])
        columns = np.arange(weight.shape[0])
        zero = ((zero_words[group, columns // 8] >> (4 * (columns % 8))) & 15) + 1
        weight[:, k] = (value - zero) * scales[group]
    return weight


def _awq(own: dict[str, torch.Tensor], config: dict[str, Any]) -> Floats:
    words, zero_words, scales = (_numpy(own[name]) for name in ("qweight", "qzeros", "scales"))
    num_in, num_out = words.shape[0], 8 * words.shape[1]
    group_size = num_in // len(scales)
    weight = np.empty((num_out, num_in))
    for n in range(num_out):
        shift = 4 * AWQ_NIBBLE_OF_COLUMN[n % 8]
        value, zero = (words[:, n // 8] >> shift) & 15, (zero_words[:, n // 8] >> shift) & 15
        weight[n] = (value - np.repeat(zero, group_size)) * np.repeat(scales[:, n], group_size)
    return weight


def _fp8_blocks(own: dict[str, torch.Tensor], config: dict[str, Any]) -> Floats:
    weight, scales = own["weight"].double().numpy(), _numpy(own["weight_scale_inv"])
    rows, columns = (np.arange(size) // block for size, block in zip(weight.shape, config["weight_block_size"]))
    return weight * scales[rows][:, columns]


def _compressed(own: dict[str, torch.Tensor], config: dict[str, Any]) -> Floats:
    scales = _numpy(own["weight_scale"])
    if "weight" in own:
        return own["weight"].double().numpy() * scales
    bits = config["config_groups"]["group_0"]["weights"]["num_bits"]
    num_out, num_in = own["weight_shape"].tolist()
    values = _unpack(_numpy(own["weight_packed"]), num_in, bits)
    zeros = np.full(scales.shape, 2 ** (bits - 1))
    if "weight_zero_point" in own:
        zeros = _unpack(_numpy(own["weight_zero_point"]).T, num_out, bits).T
    repeats = num_in // scales.shape[1]
    return (values - np.repeat(zeros, repeats, 1)) * np.repeat(scales, repeats, 1)


def _unpack(words: NDArray[Any], columns: int, bits: int) -> NDArray[Any]:
    per_word = 32 // bits
    index = np.arange(columns)
    return (words[:, index // per_word] >> (bits * (index % per_word))) & (2**bits - 1)


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Integers as int64 with the bits of the unsigned word, floats as float64."""
    if tensor.is_floating_point():
        return tensor.double().numpy()
    return tensor.numpy().astype(np.int64) & 0xFFFFFFFF
