"""AWQ checkpoints (arXiv 2306.00978) in AutoAWQ's "gemm" layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .canonical import integer_bytes, integer_weights
from .modules import ModuleScheme
from .packing import WORD_BITS, unpack_awq
from .scheme import COLUMNS, ROWS, WIDE_FLOATS, Format, LoadedPart, Module, TensorSource
from .settings import Settings

BITS = 4
PER_WORD = WORD_BITS // BITS


@dataclass(frozen=True)
class AwqFormat(Format):
    """Eight outputs per word, in the order 0 2 4 6 1 3 5 7 from the lowest bits; zero points as they are.

    qweight  int32 [K, N/8]; qzeros int32 [K/G, N/8], missing where there are no zero points; scales [K/G, N]
    """

    group_size: int
    zero_point: bool = True
    sliced = True

    def names(self, module: str, source: TensorSource) -> tuple[str, ...]:
        names, qzeros = (f"{module}.qweight", f"{module}.scales"), f"{module}.qzeros"
        return (*names, qzeros) if self.zero_point or source.holds(qzeros) else names

    def num_bytes(self, module: Module, dtype: torch.dtype, *, expert: bool) -> float:
        return integer_bytes(module, self.group_size, not self.zero_point, BITS)

    def load(self, module: Module, source: TensorSource) -> LoadedPart:
        groups, rows = module.groups(self.group_size), module.whole[0]
        if rows % PER_WORD:
            raise ValueError(f"{module.name}: {rows} outputs of {BITS} bits do not fill words of {WORD_BITS} bits")
        words = module.stored(source, f"{module.name}.qweight", ((COLUMNS, 1, 1), (ROWS, PER_WORD, 1)), torch.int32)
        scales = module.stored(source, f"{module.name}.scales", (groups, (ROWS, 1, 1)), *WIDE_FLOATS)
        zeros = None
        if self.zero_point:
            zeros = unpack_awq(module.stored(source, f"{module.name}.qzeros", (groups, (ROWS, PER_WORD, 1)), torch.int32)).T
        return integer_weights(unpack_awq(words).T.contiguous(), scales.T, zeros, BITS)


@dataclass(frozen=True)
class Awq(ModuleScheme):
    """unconverted: parts of the names of modules that stay floats."""

    format: AwqFormat
    unconverted: tuple[str, ...] = ()
    lm_head: bool = False

    @staticmethod
    def read(settings: Settings) -> Awq:
        settings.only("bits" if settings.get("bits") is not None else "w_bit", BITS)
        settings.only("version", "gemm", "GEMM", default="gemm")
        group_size = Settings(settings.method, {"group_size": settings.get("q_group_size")}).group_size(settings.group_size())
        awq_format = AwqFormat(group_size, settings.flag("zero_point", True))
        return Awq(awq_format, settings.names("modules_to_not_convert"), settings.flag("lm_head", False))

    def format_of(self, module: str) -> Format | None:
        if (module == "lm_head" and not self.lm_head) or any(name in module for name in self.unconverted):
            return None
        return self.format
