"""Checkpoints of ``quant_method: fp8``, DeepSeek's and others': float8 weights with scales of blocks, or of whole tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

from .canonical import scaled_bytes, scaled_weights
from .modules import ModuleScheme
from .rounding import FP8
from .scheme import ALL, COLUMNS, ROWS, WIDE_FLOATS, Format, LoadedPart, Module, TensorSource, WholeNeeded
from .settings import Settings


@dataclass(frozen=True)
class Fp8Format(Format):
    """weight float8_e4m3fn [N, K]. With blocks weight_scale_inv [ceil(N/128), ceil(K/128)], by which values are multiplied, despite
    its name; else weight_scale (weight_scale_inv to transformers), one number or one per row. static: the scale of
    activations lies in input_scale."""

    blocks: bool
    static: bool
    sliced = True

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        inverse, input_scale = f"{module}.weight_scale_inv", f"{module}.input_scale"
        scale = inverse if self.blocks or source.holds(inverse) else f"{module}.weight_scale"
        names = f"{module}.weight", scale
        return (*names, input_scale) if self.static or source.holds(input_scale) else names

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        return scaled_bytes(module, self.blocks)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        weight_name, scale_name, *_ = self.names(module.name, source)
        weight = module.stored(source, weight_name, ((ROWS, 1, 1), (COLUMNS, 1, 1)), FP8)
        scales = weight_scales(module, scale_name, self.blocks, source)
        input_scale = single(f"{module.name}.input_scale", source) if self.static else None
        return scaled_weights("gemm_fp8", weight, scales, source.dtype, input_scale, self.blocks)


def weight_scales(module: Module, name: str, blocks: bool, source: TensorSource) -> torch.Tensor:
    """f32 [ceil(N/128), ceil(K/128)] with blocks; else [N, 1] or [1, 1], however many dimensions there are on disk."""
    if blocks:
        return module.stored(source, name, ((ROWS, FP8_BLOCK, 1), (COLUMNS, FP8_BLOCK, 1)), torch.float32)
    shape, rows = source.shape(name), module.whole[0]
    if math.prod(shape) not in (1, rows):
        raise ValueError(f"{name} has the shape {shape}; expected one scale, or one for each of {rows} rows")
    if module.share is None or math.prod(shape) == 1:
        return source.stored(name, None, *WIDE_FLOATS).float().reshape(-1, 1)
    if shape[0] != rows:
        raise WholeNeeded
    axes = ((ROWS, 1, 1), *((ALL, 1, 1) for _ in shape[1:]))
    return module.stored(source, name, axes, *WIDE_FLOATS).float().reshape(-1, 1)


def single(name: str, source: TensorSource) -> torch.Tensor:
    """f32 [1, 1]."""
    return one_number(name, source.stored(name, None, *WIDE_FLOATS).float())


def one_number(name: str, value: torch.Tensor) -> torch.Tensor:
    """[1, 1]. Raises ValueError for more numbers than one."""
    if value.numel() != 1:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}; expected a single number")
    return value.reshape(1, 1)


@dataclass(frozen=True)
class Fp8(ModuleScheme):
    """Every linear layer that has a scale; ``unconverted``: names, or beginnings of names, of those that stay floats."""

    format: Fp8Format
    unconverted: tuple[str, ...] = ()

    @staticmethod
    def read(settings: Settings) -> Fp8:
        static = settings.only("activation_scheme", "dynamic", "static", default="dynamic") == "static"
        settings.only("fmt", "e4m3", default="e4m3")
        block = settings.get("weight_block_size")
        if block is not None and block != [FP8_BLOCK, FP8_BLOCK]:
            raise settings.refusal("weight_block_size", block, f"[{FP8_BLOCK}, {FP8_BLOCK}]")
        if block is not None and static:
            raise settings.refusal("activation_scheme", "static", "dynamic, where weights have blocks")
        names = settings.names("ignored_layers") or settings.names("modules_to_not_convert")
        return Fp8(Fp8Format(block is not None, static), names)

    def format_of(self, module: str) -> Format | None:
        below = tuple(f"{name}." for name in self.unconverted)
        return None if below and f"{module}.".startswith(below) else self.format
