"""GPTQ checkpoints (arXiv 2210.17323), as AutoGPTQ, GPTQModel and AutoRound write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .canonical import float_bytes, integer_bytes, integer_weights
from .modules import ModuleScheme
from .packing import WORD_BITS, unpack_stream
from .scheme import WIDE_FLOATS, Format, LoadedPart, Module, TensorSource
from .settings import Settings


@dataclass(frozen=True)
class GptqFormat(Format):
    """Quantized values packed along the inputs, zero points along the outputs, the first in the lowest bits.

    qweight  int32 [K * bits / 32, N]; qzeros int32 [K/G, N * bits / 32]; scales [K/G, N]; g_idx int32 [K], the group of each
             input, may be missing where groups are adjacent inputs
    zero_offset  what is to be added to stored zero points: 1 in checkpoint format "gptq", 0 in "gptq_v2"
    """

    bits: int
    group_size: int
    symmetric: bool
    zero_offset: int

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        names = f"{module}.qweight", f"{module}.qzeros", f"{module}.scales"
        return (*names, *filter(source.holds, (f"{module}.g_idx",)))

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        if expert and self.bits > 4:
            return float_bytes(module, dtype)
        return integer_bytes(module, self.group_size, self.symmetric, self.bits)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        num_groups = module.num_groups(self.group_size)
        for what, count in (("inputs", module.columns), ("outputs", module.rows)):
            if count * self.bits % WORD_BITS:
                raise ValueError(f"{module.name}: {count} {what} of {self.bits} bits do not fill words of 32 bits")
        qweight, qzeros, scales, *g_idx_name = self.names(module.name, source)
        words = source.stored(qweight, (module.columns * self.bits // WORD_BITS, module.rows), torch.int32)
        zero_words = source.stored(qzeros, (num_groups, module.rows * self.bits // WORD_BITS), torch.int32)
        quantized = unpack_stream(words.T.contiguous(), self.bits)
        zeros = None
        if not self.symmetric:
            zeros = self._zeros(zero_words).T
        perm = None
        for name in g_idx_name:
            g_idx = source.stored(name, (module.columns,), torch.int32, torch.int64)
            perm = sorted_by_group(g_idx, num_groups, module.name)
        if perm is not None:
            quantized = quantized[:, perm.long()]
        by_group = source.stored(scales, (num_groups, module.rows), *WIDE_FLOATS)
        return integer_weights(quantized, by_group.T, zeros, self.bits, perm)

    def _zeros(self, words: torch.Tensor) -> torch.Tensor:
        """uint8 [K/G, N]. The one that is missing was taken off whole words, where they hold whole values: a zero point of 0
        borrowed from the next, and only adding to words gives it back."""
        whole = WORD_BITS % self.bits == 0
        if whole and self.zero_offset:
            words = (words.long() + sum(1 << shift for shift in range(0, WORD_BITS, self.bits))).to(torch.int32)
        zeros = unpack_stream(words, self.bits)
        return zeros if whole else (zeros + self.zero_offset) & ((1 << self.bits) - 1)


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
    dynamic   GPTQModel's rules, the first that matches a module counts: "-:REGEX" stores it as floats, "+:REGEX" (or just the
              regex) changes settings
    lm_head   whether the projection to logits is quantized too
    modules   endings of the names of the modules that are quantized; empty: all
    """

    default: GptqFormat
    dynamic: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lm_head: bool = False
    modules: tuple[str, ...] = ()

    @staticmethod
    def read(settings: Settings) -> Gptq:
        settings.only("checkpoint_format", "gptq", "gptq_v2", default="gptq")
        settings.only("pack_dtype", "int32", default="int32")
        bits = settings.only("bits", 2, 3, 4, 8)
        version = settings.get("checkpoint_format", "gptq")
        default = GptqFormat(bits, settings.group_size(), bool(settings.get("sym", True)), 1 if version == "gptq" else 0)
        blocks = settings.get("modules_in_block_to_quantize") or ()
        modules = tuple(name for block in blocks for name in ([block] if isinstance(block, str) else block))
        scheme = Gptq(default, settings.get("dynamic") or {}, bool(settings.get("lm_head", False)), modules)
        for rule in scheme.dynamic:
            scheme.changed(rule)
        return scheme

    def changed(self, rule: str) -> GptqFormat | None:
        """The format that a rule of ``dynamic`` asks for."""
        if rule.startswith("-:"):
            return None
        settings = Settings("gptq", self.dynamic[rule], f"dynamic[{rule!r}]")
        return replace(
            self.default,
            bits=settings.only("bits", 2, 3, 4, 8, default=self.default.bits),
            group_size=settings.group_size(self.default.group_size),
            symmetric=bool(settings.get("sym", self.default.symmetric)),
        )

    def format_of(self, module: str) -> Format | None:
        if module == "lm_head" and not self.lm_head:
            return None
        if self.modules and not module.endswith(self.modules):
            return None
        for rule in self.dynamic:
            if re.match(rule.removeprefix("-:").removeprefix("+:"), module):
                return self.changed(rule)
        return self.default
