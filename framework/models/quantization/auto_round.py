"""AutoRound checkpoints (arXiv 2309.05516): the tensors of GPTQ, of AWQ or of float8, with settings that may differ by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .awq import AwqFormat
from .fp8 import Fp8
from .gptq import GptqFormat
from .modules import ModuleScheme
from .scheme import Format
from .settings import Settings

FLOAT_BITS = 16
"""From this width on a layer is not quantized."""
AWQ_PACKING = "auto_round:auto_awq"
ZERO_OFFSETS = {"auto_round:auto_gptq": 1, "auto_round": 0, "auto_round:gptqmodel": 0}
"""packing_format with the tensors of GPTQ -> ``GptqFormat.zero_offset``."""


@dataclass(frozen=True)
class AutoRound(ModuleScheme):
    """default  of the linear layers below ``blocks`` (names of lists of layers, all if there are none)
    extra    settings of some modules, by their names or regular expressions for them
    """

    default: Settings
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()

    @staticmethod
    def read(settings: Settings) -> AutoRound:
        named = "block_name_to_quantize" if settings.get("block_name_to_quantize") else "to_quant_block_names"
        blocks = tuple(part.strip() for names in settings.nested_names(named) for part in names.split(","))
        extra = settings.sections("extra_config")
        scheme = AutoRound(settings, {module: own.values for module, own in extra.items()}, blocks)
        for module in ("", *scheme.extra):
            scheme.format(module)
            if _is_pattern(module):
                settings.pattern("extra_config", module)
        return scheme

    def format(self, key: str) -> Format | None:
        """By the settings under a key of ``extra``; "" are the default ones."""
        where = f"quantization_config.extra_config[{key!r}]" if key else "quantization_config"
        settings = Settings("auto-round", {**self.default.values, **self.extra.get(key, {})}, where)
        if settings.number("bits", 4) >= FLOAT_BITS:
            return None
        if settings.only("data_type", "int", "fp", default="int") == "fp":
            settings.only("packing_format", "auto_round:fp8", "auto_round:fp8_static")
            settings.only("bits", 8)
            return Fp8.read(settings).format
        if (act_bits := settings.number("act_bits", FLOAT_BITS)) < FLOAT_BITS:
            raise settings.refusal("act_bits", act_bits, f"{FLOAT_BITS} with integers: their activations are floats")
        packing = settings.only("packing_format", *ZERO_OFFSETS, AWQ_PACKING, default="auto_round:auto_gptq")
        if packing == AWQ_PACKING:
            settings.only("bits", 4, default=4)
            return AwqFormat(settings.group_size())
        bits = settings.only("bits", 2, 3, 4, 5, 6, 7, 8, default=4)
        return GptqFormat(bits, settings.group_size(), settings.flag("sym", True), ZERO_OFFSETS[packing])

    def format_of(self, module: str) -> Format | None:
        if module in self.extra:
            return self.format(module)
        for key in self.extra:
            if _is_pattern(key) and re.search(key, module):
                return self.format(key)
        inside = module.startswith(tuple(f"{block}." for block in self.blocks)) if self.blocks else module != "lm_head"
        return self.format("") if inside else None


def _is_pattern(key: str) -> bool:
    return any(character in key for character in "*+?^$[]()|\\")
