"""GPTQ checkpoints (arXiv 2210.17323), as AutoGPTQ, GPTQModel and AutoRound write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch

from .canonical import float_bytes, integer_bytes, integer_weights
from .modules import ModuleScheme
from .packing import WORD_BITS, unpack_stream
from .scheme import COLUMNS, ROWS, WIDE_FLOATS, Format, LoadedPart, Module, TensorSource, WholeNeeded
from .settings import Settings


@dataclass(frozen=True)
class GptqFormat(Format):
    """Quantized values packed along the inputs, zero points along the outputs, the first in the lowest bits.

    qweight  int32 [K * bits / 32, N]; qzeros int32 [K/G, N * bits / 32]; scales [K/G, N]; g_idx int32 [K], the group of each
             input, may be missing where groups are adjacent inputs
    zero_offset  what is to be added to stored zero points: 1 in checkpoint format "gptq", 0 in "gptq_v2"
    act_order    groups are not of adjacent inputs: there must be a g_idx
    """

    bits: int
    group_size: int
    symmetric: bool
    zero_offset: int
    act_order: bool = False
    sliced = True

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        names = f"{module}.qweight", f"{module}.qzeros", f"{module}.scales"
        g_idx = f"{module}.g_idx"
        return (*names, g_idx) if source.holds(g_idx) or (self.act_order and self.group_size != -1) else names

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        if expert and self.bits > 4:
            return float_bytes(module, dtype)
        return integer_bytes(module, self.group_size, self.symmetric, self.bits)

    def orders_inputs(self, num_inputs: int) -> bool:
        return self.act_order and self.group_size not in (-1, num_inputs)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        groups = module.groups(self.group_size)
        for what, count in zip(("outputs", "inputs"), module.whole):
            if count * self.bits % WORD_BITS:
                raise ValueError(f"{module.name}: {count} {what} of {self.bits} bits do not fill words of 32 bits")
        qweight, qzeros, scales, *g_idx_name = self.names(module.name, source)
        packed = self._packed()
        words = module.stored(source, qweight, ((COLUMNS, *packed), (ROWS, 1, 1)), torch.int32)
        zero_words = module.stored(source, qzeros, (groups, (ROWS, *packed)), torch.int32)
        quantized = unpack_stream(words.T.contiguous(), self.bits)
        zeros = None
        if not self.symmetric:
            zeros = self._zeros(zero_words).T
        perm = None
        for name in g_idx_name:
            g_idx = module.stored(source, name, ((COLUMNS, 1, 1),), torch.int32, torch.int64)
            perm = order_of_groups(g_idx, module, self.group_size)
        if perm is not None:
            quantized = quantized[:, perm.long()]
        by_group = module.stored(source, scales, (groups, (ROWS, 1, 1)), *WIDE_FLOATS)
        return integer_weights(quantized, by_group.T, zeros, self.bits, perm)

    def _packed(self) -> tuple[int, int]:
        """(values, words) of the fewest whole words that hold whole values."""
        return WORD_BITS // math.gcd(self.bits, WORD_BITS), self.bits // math.gcd(self.bits, WORD_BITS)

    def _zeros(self, words: torch.Tensor) -> torch.Tensor:
        """uint8 [K/G, N]. The one that is missing was taken off whole words, where they hold whole values: a zero point of 0
        borrowed from the next, and only adding to words gives it back."""
        whole = WORD_BITS % self.bits == 0
        if whole and self.zero_offset:
            words = (words.long() + sum(1 << shift for shift in range(0, WORD_BITS, self.bits))).to(torch.int32)
        zeros = unpack_stream(words, self.bits)
        return zeros if whole else (zeros + self.zero_offset) & ((1 << self.bits) - 1)


def order_of_groups(g_idx: torch.Tensor, module: Module, group_size: int) -> torch.Tensor | None:
    """``sorted_by_group`` of a module, which may be a share. g_idx [K]: of its columns."""
    if module.share is not None and module.columns != module.whole[1]:
        columns = torch.arange(module.share[1].start, module.share[1].stop, device=g_idx.device)
        if not torch.equal(g_idx.long(), columns // (module.whole[1] if group_size == -1 else group_size)):
            raise WholeNeeded  # inputs of a group belong to several ranks
        return None
    return sorted_by_group(g_idx, module.num_groups(group_size), module.name)


def sorted_by_group(g_idx: torch.Tensor, num_groups: int, module: str) -> torch.Tensor | None:
    """int32 [K], the order of inputs that puts groups one after another; None if they are in that order."""
    counts = torch.bincount(g_idx.long().clamp_min(0), minlength=num_groups)
    if len(counts) != num_groups or bool((counts != len(g_idx) // num_groups).any()) or bool((g_idx < 0).any()):
        raise ValueError(
            f"{module}.g_idx has groups of {sorted(set(counts.tolist()))} inputs in {len(counts)} groups; expected {num_groups} "
            f"groups (one per row of scales) of equal size. Requantize the layer with a group size that divides {len(g_idx)}."
        )
    return None if bool((g_idx.diff() >= 0).all()) else torch.argsort(g_idx.long(), stable=True).int()


@dataclass(frozen=True)
class Gptq(ModuleScheme):
    """default  of every linear layer
    dynamic   GPTQModel's rules, the first that matches a module counts: "-:REGEX" stores it as floats (None), "+:REGEX" (or just
              the regex) changes settings
    lm_head   whether the projection to logits is quantized too
    modules   endings of the names of the modules that are quantized; empty: all
    """

    default: GptqFormat
    dynamic: tuple[tuple[re.Pattern[str], GptqFormat | None], ...] = ()
    lm_head: bool = False
    modules: tuple[str, ...] = ()

    @staticmethod
    def read(settings: Settings) -> Gptq:
        settings.only("checkpoint_format", "gptq", "gptq_v2", default="gptq")
        settings.only("pack_dtype", "int32", default="int32")
        bits = settings.only("bits", 2, 3, 4, 8)
        version = settings.get("checkpoint_format", "gptq")
        zero_offset, act_order = 1 if version == "gptq" else 0, settings.flag("desc_act", False)
        default = GptqFormat(bits, settings.group_size(), settings.flag("sym", True), zero_offset, act_order)
        dynamic = {
            rule: None if rule.startswith("-:") else _changed(default, own) for rule, own in settings.sections("dynamic").items()
        }
        rules = tuple((settings.pattern("dynamic", re.sub("^[-+]:", "", rule)), found) for rule, found in dynamic.items())
        modules = settings.nested_names("modules_in_block_to_quantize")
        return Gptq(default, rules, settings.flag("lm_head", False), modules)

    def format_of(self, module: str) -> Format | None:
        if module == "lm_head" and not self.lm_head:
            return None
        if self.modules and not module.endswith(self.modules):
            return None
        return next((found for rule, found in self.dynamic if rule.match(module)), self.default)


def _changed(default: GptqFormat, settings: Settings) -> GptqFormat:
    """The format that a rule of ``dynamic`` asks for."""
    return replace(
        default,
        bits=settings.only("bits", 2, 3, 4, 8, default=default.bits),
        group_size=settings.group_size(default.group_size),
        symmetric=settings.flag("sym", default.symmetric),
        act_order=settings.flag("desc_act", default.act_order),
    )
