"""Checkpoints of llm-compressor and others in the compressed-tensors format."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

from .canonical import channel_weights, float_bytes, integer_bytes, integer_weights, scaled_bytes, scaled_weights
from .fp8 import one_number, single, weight_scales
from .gptq import order_of_groups
from .modules import ModuleScheme
from .mxfp4 import MXFP4_GROUP, MXFP4_NAN, mxfp4_values
from .packing import WORD_BITS, unpack_words
from .rounding import FP8
from .scheme import COLUMNS, ROWS, WIDE_FLOATS, Format, LoadedPart, Module, TensorSource
from .settings import Settings, matches_any
from .unquantized import float_linear


@dataclass(frozen=True)
class PackedFormat(Format):
    """ "pack-quantized": integers for float activations, stored without sign, each word by itself.

    weight_packed  int32 [N, ceil(K * bits / 32)]; weight_scale [N, K/G]; weight_shape int64 [2]
    weight_zero_point  int32 [ceil(N * bits / 32), K/G], packed along the outputs, unless symmetric
    weight_g_idx   int32 [K], the group of each input; must be there with act_order
    """

    bits: int
    group_size: int
    symmetric: bool
    act_order: bool = False
    sliced = True

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        names = [f"{module}.weight_packed", f"{module}.weight_scale"]
        if not self.symmetric:
            names.append(f"{module}.weight_zero_point")
        shape, g_idx = f"{module}.weight_shape", f"{module}.weight_g_idx"
        return (*names, *(name for name in (shape, g_idx) if source.holds(name) or (self.act_order and name == g_idx)))

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        if expert and self.bits > 4:
            return float_bytes(module, dtype)
        return integer_bytes(module, self.group_size, self.symmetric, self.bits)

    def orders_inputs(self, num_inputs: int) -> bool:
        return self.act_order and self.group_size not in (-1, num_inputs)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        groups, per_word = module.groups(self.group_size), WORD_BITS // self.bits
        packed, scale, *_ = self.names(module.name, source)
        if source.holds(name := f"{module.name}.weight_shape"):
            shape = source.stored(name, (2,), torch.int64, torch.int32).tolist()
            if shape != (expected := list(module.whole)):
                raise ValueError(f"{name} is {shape}, but config.json asks for {expected}")
        words = module.stored(source, packed, ((ROWS, 1, 1), (COLUMNS, per_word, 1)), torch.int32)
        quantized = unpack_words(words, self.bits)[:, : module.columns]
        scales = module.stored(source, scale, ((ROWS, 1, 1), groups), *WIDE_FLOATS)
        zeros = None
        if not self.symmetric:
            zero_words = module.stored(source, f"{module.name}.weight_zero_point", ((ROWS, per_word, 1), groups), torch.int32)
            zeros = unpack_words(zero_words.T.contiguous(), self.bits).T[: module.rows]
        perm = None
        if source.holds(name := f"{module.name}.weight_g_idx"):
            g_idx = module.stored(source, name, ((COLUMNS, 1, 1),), torch.int32, torch.int64)
            perm = order_of_groups(g_idx, module, self.group_size) if bool((g_idx >= 0).any()) else None
        return integer_weights(quantized if perm is None else quantized[:, perm.long()], scales, zeros, self.bits, perm)


@dataclass(frozen=True)
class ScaledFormat(Format):
    """ "int-quantized", "float-quantized" and "naive-quantized": weight int8 or float8_e4m3fn [N, K] as it is.

    weight_scale  one, [N, 1], or of 128 x 128 blocks
    activations   none: they stay floats; dynamic: quantized per token, or with blocks per token and 128 inputs; static: input_scale
                  and, asymmetric, input_zero_point, one number each
    """

    dtype: torch.dtype
    activations: str
    blocks: bool = False
    sliced = True

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        names = f"{module}.weight", f"{module}.weight_scale"
        if self.activations != "static":
            return names
        return (*names, f"{module}.input_scale", *filter(source.holds, (f"{module}.input_zero_point",)))

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        if expert and (self.dtype == torch.int8 or self.activations == "none"):
            return float_bytes(module, dtype)
        return scaled_bytes(module, self.blocks)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        weight = module.stored(source, f"{module.name}.weight", ((ROWS, 1, 1), (COLUMNS, 1, 1)), self.dtype)
        scales = weight_scales(module, f"{module.name}.weight_scale", self.blocks, source)
        if self.activations == "none":
            return channel_weights(weight, scales)
        op = "gemm_int8" if self.dtype == torch.int8 else "gemm_fp8"
        if self.activations == "dynamic":
            return scaled_weights(op, weight, scales, source.dtype, blocks=self.blocks)
        zero, name = None, f"{module.name}.input_zero_point"
        if source.holds(name):
            zero = one_number(name, source.stored(name, None, torch.int8, torch.int32)).int()
        return scaled_weights(op, weight, scales, source.dtype, single(f"{module.name}.input_scale", source), self.blocks, zero)


@dataclass(frozen=True)
class Mxfp4Format(Format):
    """ "mxfp4-pack-quantized": weight_packed uint8 [N, K/2], two e2m1 values per byte; weight_scale uint8 [N, K/32], powers of two.
    No kernel multiplies these: they become floats."""

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        return f"{module}.weight_packed", f"{module}.weight_scale"

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        return float_bytes(module, dtype)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        packed, scale = self.names(module.name, source)
        blocks = source.stored(packed, (module.rows, module.columns // 2), torch.uint8)
        scales = source.stored(scale, (module.rows, module.num_groups(MXFP4_GROUP)), torch.uint8)
        if bool((scales == MXFP4_NAN).any()):
            raise ValueError(f"{scale} has values that are NaN: quantize the model again")
        weights = mxfp4_values(blocks, scales).to(source.dtype)
        return float_linear(weights, None, f"MXFP4 weights were unpacked to {source.dtype}")


@dataclass(frozen=True)
class CompressedTensors(ModuleScheme):
    """groups  (targets, format): names, "re:" regular expressions, or "Linear" for all that no other group names
    ignore   targets that stay floats
    """

    groups: tuple[tuple[tuple[str, ...], Format], ...]
    ignore: tuple[str, ...] = ()

    @staticmethod
    def read(settings: Settings) -> CompressedTensors:
        for section in ("sparsity_config", "transform_config"):
            if (found := settings.section(section)).values and found.get("format") != "dense":
                raise settings.refusal(section, found.values, "absent: sparse and transformed weights are not known")
        if not settings.get("config_groups"):
            raise settings.refusal("config_groups", settings.get("config_groups"), "a group with targets and weights")
        groups = tuple(
            (group.names("targets"), read_group(group, group.get("format", settings.get("format", "dense"))))
            for group in settings.sections("config_groups").values()
        )
        return CompressedTensors(groups, settings.names("ignore"))

    def format_of(self, module: str) -> Format | None:
        if matches_any(module, self.ignore):
            return None
        named = [found for targets, found in self.groups if matches_any(module, targets)]
        classes = [found for targets, found in self.groups if "Linear" in targets]
        return next(iter((*named, *classes)), None)


def read_group(group: Settings, packing: str) -> Format:
    """The format of a group of modules. Raises ValueError naming a setting that no kernel here serves."""
    weights, inputs = group.section("weights"), group.section("input_activations")
    if group.get("output_activations"):
        raise group.refusal("output_activations", group.get("output_activations"), "absent")
    strategy = weights.only("strategy", "tensor", "channel", "group", "block", default="tensor")
    kind = weights.only("type", "int", "float", default="int")
    if packing == "mxfp4-pack-quantized":
        if inputs.values:
            raise group.refusal("input_activations", inputs.values, "absent with MXFP4 weights")
        return Mxfp4Format()
    if packing == "pack-quantized":
        if inputs.values:
            raise group.refusal("input_activations", inputs.values, "absent with packed weights")
        bits = weights.only("num_bits", 2, 3, 4, 8)
        group_size = weights.group_size() if strategy == "group" else -1
        act_order = strategy == "group" and weights.get("actorder") in ("group", "dynamic")
        return PackedFormat(bits, group_size, weights.flag("symmetric", True), act_order)
    if packing not in ("int-quantized", "float-quantized", "naive-quantized"):
        known = "pack-quantized, int-quantized, float-quantized, naive-quantized or mxfp4-pack-quantized"
        raise group.refusal("format", packing, known)
    weights.only("num_bits", 8)
    weights.only("symmetric", True, default=True)
    if strategy == "group":
        raise weights.refusal("strategy", strategy, f"tensor, channel or block with {packing}")
    if strategy == "block" and weights.get("block_structure") != [FP8_BLOCK, FP8_BLOCK]:
        raise weights.refusal("block_structure", weights.get("block_structure"), f"[{FP8_BLOCK}, {FP8_BLOCK}]")
    dtype = torch.int8 if kind == "int" else FP8
    if strategy == "block" and dtype == torch.int8:
        raise weights.refusal("strategy", strategy, "tensor or channel with integers")
    return ScaledFormat(dtype, _activations(group, inputs, kind, strategy), strategy == "block")


def _activations(group: Settings, inputs: Settings, kind: str, strategy: str) -> str:
    if not inputs.values:
        if strategy == "block":
            raise group.refusal("input_activations", None, "dynamic, per group of 128, where weights have blocks")
        return "none"
    inputs.only("num_bits", 8)
    inputs.only("type", kind)
    if inputs.flag("dynamic", False):
        inputs.only("symmetric", True, default=True)
        inputs.only("strategy", "group" if strategy == "block" else "token")
        if strategy == "block":
            inputs.only("group_size", FP8_BLOCK)
        return "dynamic"
    inputs.only("strategy", "tensor", default="tensor")
    if kind == "float":
        inputs.only("symmetric", True, default=True)
    return "static"
