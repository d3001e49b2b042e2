"""What quantized linear layers are on disk: the tensors that take the place of ``weight``, and what config.json says of them.

Sources: compressed-tensors (pack_to_int32, QuantizationArgs), the GPTQ format of AutoGPTQ and GPTQModel (version 1, which stores
zero points less 1), the GEMM format of AutoAWQ, and fine-grained float8 as of DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config import QuantConfig
from ..models.quantization.packing import pack_awq, pack_words
from ..models.quantization.rounding import fp8_blocks, fp8_channels, int8_channels, int_groups

BITS = 4


@dataclass(frozen=True)
class QuantizedWeight:
    """A 4-bit weight [N, K] ~ (values - zeros) * scales, per group.

    values  uint8 [N, K] from 0 to 15
    scales  [N, K/G] in the dtype that is stored
    zeros   uint8 [N, K/G]; None: all are 8
    groups  int32 [K], the group of each input; None: adjacent inputs
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None

    def zero_points(self) -> torch.Tensor:
        """uint8 [N, K/G]."""
        return torch.full_like(self.scales, 2 ** (BITS - 1), dtype=torch.uint8) if self.zeros is None else self.zeros

    def group_of_input(self) -> torch.Tensor:
        """int32 [K]."""
        if self.groups is not None:
            return self.groups
        num_in, num_groups = self.values.shape[1], self.scales.shape[1]
        return torch.arange(num_in, dtype=torch.int32, device=self.values.device) // (num_in // num_groups)

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K]."""
        groups = self.group_of_input().long()
        return (self.values.float() - self.zero_points().float()[:, groups]) * self.scales.float()[:, groups]


@dataclass(frozen=True)
class Grid:
    """To what weights of 4 bits are rounded.

    group_size   inputs of a row that share a scale; -1: all
    symmetric    no zero points
    scale_dtype  that scales are stored in, and rounded to before they are used
    """

    group_size: int
    symmetric: bool
    scale_dtype: torch.dtype = torch.float16

    def nearest(self, weight: torch.Tensor) -> QuantizedWeight:
        """weight [N, K], each value to the nearest one of the grid that its group asks for."""
        return QuantizedWeight(*int_groups(weight, BITS, self.group_size, self.symmetric, self.scale_dtype))


def round_to_nearest(weight: torch.Tensor, config: QuantConfig) -> dict[str, torch.Tensor]:
    """The tensors of a scheme that needs no calibration, by their names within the module; weight [N, K]."""
    if config.scheme == "rtn-int4":
        quantized, scales, zeros = int_groups(weight, BITS, config.group_size, config.is_symmetric)
        packed = {"weight_packed": pack_words(quantized, BITS), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
        return packed if zeros is None else {**packed, "weight_zero_point": pack_words(zeros.T, BITS).T}
    if config.scheme == "int8-weight":
        signed, scales = int8_channels(weight)
        words = pack_words((signed.short() + 128).to(torch.uint8), 8)
        return {"weight_packed": words, "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
    if config.scheme == "fp8-block":
        values, scales = fp8_blocks(weight)
        return {"weight": values, "weight_scale_inv": scales}
    values, scales = {"int8": int8_channels, "fp8": fp8_channels}[config.scheme](weight)
    return {"weight": values, "weight_scale": scales}


def gptq_tensors(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """GPTQ, version 1."""
    zeros = (weight.zero_points().T.short() - 1).bitwise_and(15).to(torch.uint8)
    return {
        "qweight": pack_words(weight.values, BITS).T,
        "qzeros": pack_words(zeros, BITS),
        "scales": weight.scales.T,
        "g_idx": weight.group_of_input(),
    }


def awq_tensors(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """AWQ, GEMM version."""
    assert weight.groups is None, "AWQ's groups are of adjacent inputs"
    return {"qweight": pack_awq(weight.values.T), "qzeros": pack_awq(weight.zero_points().T), "scales": weight.scales.T}


def quantization_config(config: QuantConfig, float_modules: Sequence[str], act_order: bool) -> dict[str, Any]:
    """What config.json says of a scheme. float_modules: names of linear layers that are not quantized."""
    if config.scheme == "gptq-int4":
        return {
            "quant_method": "gptq",
            "bits": BITS,
            "group_size": config.group_size,
            "desc_act": act_order,
            "sym": config.is_symmetric,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
        }
    if config.scheme == "awq-int4":
        return {
            "quant_method": "awq",
            "bits": BITS,
            "group_size": config.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(float_modules),
        }
    if config.scheme == "fp8-block":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": list(float_modules),
        }
    return _compressed_tensors(config, float_modules)


def _compressed_tensors(config: QuantConfig, float_modules: Sequence[str]) -> dict[str, Any]:
    channel: dict[str, Any] = {"strategy": "channel", "symmetric": True, "dynamic": False}
    token: dict[str, Any] = {"strategy": "token", "symmetric": True, "dynamic": True}
    group = channel if config.group_size == -1 else {**channel, "strategy": "group", "group_size": config.group_size}
    int4, int8, float8 = ({"num_bits": bits, "type": kind} for bits, kind in ((BITS, "int"), (8, "int"), (8, "float")))
    layout, weights, inputs = {
        "rtn-int4": ("pack-quantized", {**group, **int4, "symmetric": config.is_symmetric}, None),
        "int8-weight": ("pack-quantized", {**channel, **int8}, None),
        "int8": ("int-quantized", {**channel, **int8}, {**token, **int8}),
        "fp8": ("float-quantized", {**channel, **float8}, {**token, **float8}),
    }[config.scheme]
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": list(float_modules),
    }
