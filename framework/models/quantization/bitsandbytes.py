"""Checkpoints of bitsandbytes: NF4 and FP4 (arXiv 2305.14314), and LLM.int8 (arXiv 2208.07339)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .canonical import channel_weights, float_bytes, scaled_bytes
from .modules import ModuleScheme
from .scheme import WIDE_FLOATS, Format, LoadedPart, Module, TensorSource
from .settings import Settings
from .unquantized import float_linear


@dataclass(frozen=True)
class CodebookFormat(Format):
    """4-bit indices into a table of 16 numbers, times the largest magnitude of a block of consecutive weights. No kernel multiplies
    these: they become floats.

    weight  uint8 [N * K / 2, 1], row by row, the first of two in the high half; weight.quant_map f32 [16]; weight.absmax, one per
    block: f32, or uint8 indices into weight.nested_quant_map, times weight.nested_absmax per block of blocks, plus an offset.
    weight.quant_state.bitsandbytes__KIND: JSON with sizes of blocks, shape and offset.
    """

    kind: str

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        weight = f"{module}.weight"
        names = weight, f"{weight}.absmax", f"{weight}.quant_map", f"{weight}.quant_state.bitsandbytes__{self.kind}"
        return (*names, *filter(source.holds, (f"{weight}.nested_absmax", f"{weight}.nested_quant_map")))

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        return float_bytes(module, dtype)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        weight, absmax, quant_map, quant_state, *_ = self.names(module.name, source)
        state = self._state(quant_state, source)
        if state.get("shape") != list(module.shape):
            raise ValueError(f"{quant_state} has the shape {state.get('shape')}, but config.json asks for {list(module.shape)}")
        block_size = _block_size(state, "blocksize", quant_state)
        packed = source.stored(weight, (module.rows * module.columns // 2, 1), torch.uint8).flatten()
        values = source.stored(quant_map, (16,), torch.float32)[torch.stack((packed >> 4, packed & 15), dim=-1).flatten().long()]
        largest = source.stored(absmax, (-(-values.numel() // block_size),), torch.uint8, torch.float32)
        if largest.dtype == torch.uint8:
            nested_size, offset = _block_size(state, "nested_blocksize", quant_state), state.get("nested_offset")
            if not isinstance(offset, int | float):
                raise ValueError(f"{quant_state} has nested_offset={offset!r}; expected a number")
            nested_map = source.stored(f"{weight}.nested_quant_map", (256,), torch.float32)
            nested = source.stored(f"{weight}.nested_absmax", (-(-largest.numel() // nested_size),), torch.float32)
            blocks = nested.repeat_interleave(nested_size)[: largest.numel()]
            largest = nested_map[largest.long()] * blocks + offset
        scales = largest.repeat_interleave(block_size)[: values.numel()]
        part = float_linear((values * scales).view(module.shape).to(source.dtype), None)
        return LoadedPart(part.op, part.tensors, note=f"{self.kind.upper()} weights were unpacked to {source.dtype}")

    def _state(self, name: str, source: TensorSource) -> dict[str, Any]:
        try:
            state = json.loads(bytes(source.stored(name, None, torch.uint8).flatten().cpu().tolist()))
        except ValueError as error:
            raise ValueError(f"{name} is not the JSON that bitsandbytes writes: {error}") from None
        if not isinstance(state, dict):
            raise ValueError(f"{name} holds {state!r}; expected an object with shape and blocksize")
        return state


def _block_size(state: Mapping[str, Any], name: str, where: str) -> int:
    size = state.get(name)
    if type(size) is not int or size < 1:
        raise ValueError(f"{where} has {name}={size!r}; expected a positive number")
    return size


@dataclass(frozen=True)
class Int8Format(Format):
    """weight int8 [N, K]; SCB f32 [N], 127 times the scale of each row. Activations stay floats here."""

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        return (f"{module}.weight", f"{module}.SCB", *filter(source.holds, (f"{module}.weight_format",)))

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        return float_bytes(module, dtype) if expert else scaled_bytes(module, blocks=False)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        weight = source.stored(f"{module.name}.weight", module.shape, torch.int8)
        scales = source.stored(f"{module.name}.SCB", (module.rows,), *WIDE_FLOATS).float()[:, None] / 127
        return channel_weights(weight, scales)


@dataclass(frozen=True)
class BitsAndBytes(ModuleScheme):
    """unconverted: parts of the names of modules that stay floats."""

    format: Format
    unconverted: tuple[str, ...] = ()

    @staticmethod
    def read(settings: Settings) -> BitsAndBytes:
        four = settings.flag("load_in_4bit", settings.flag("_load_in_4bit", False))
        eight = settings.flag("load_in_8bit", settings.flag("_load_in_8bit", False))
        if four == eight:
            raise settings.refusal("load_in_4bit", four, "true, or load_in_8bit, and not both")
        kind = settings.only("bnb_4bit_quant_type", "nf4", "fp4", default="nf4" if eight else None)
        skipped = settings.names("llm_int8_skip_modules") or ("lm_head",)
        return BitsAndBytes(CodebookFormat(kind) if four else Int8Format(), skipped)

    def format_of(self, module: str) -> Format | None:
        return None if any(name in module.split(".") or name == module for name in self.unconverted) else self.format
