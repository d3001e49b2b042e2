"""Reading the quantization section of a checkpoint's config, with errors that name the setting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hub import read_json

_OWN_FILES = ("quantize_config.json", "quant_config.json")
"""Where older tools wrote what now stands in config.json."""


@dataclass(frozen=True)
class Settings:
    """The settings of a quantization method. where: the section, for error texts."""

    method: str
    values: Mapping[str, Any]
    where: str = "quantization_config"

    def get(self, name: str, default: Any = None) -> Any:
        """A setting; None counts as not given."""
        value = self.values.get(name)
        return default if value is None else value

    def only(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """A setting that must be one of ``allowed``. Raises ValueError otherwise."""
        value = self.get(name, default)
        if value not in allowed or type(value) is bool is not type(allowed[0]):
            raise self.refusal(name, value, f"one of {', '.join(map(str, allowed))}")
        return value

    def group_size(self, default: int = 128) -> int:
        """Inputs that share a scale; -1: all."""
        value = self.get("group_size", default)
        if type(value) is not int or (value < 1 and value != -1):
            raise self.refusal("group_size", value, "-1 or a positive number")
        return value

    def refusal(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.where}.{name}={value!r} of {self.method} cannot be served: it must be {expected}")


def matches_any(module: str, names: Iterable[str]) -> bool:
    """Whether a list like compressed-tensors' ``ignore`` holds a module: by its name, or by "re:" and a regular expression that
    matches the beginning of it."""
    return any(bool(re.match(name[3:], module)) if name.startswith("re:") else name == module for name in names)


def checkpoint_settings(config: Mapping[str, Any], folder: Path | None) -> Settings | None:
    """What a checkpoint says of its quantization; None: nothing."""
    found = config.get("quantization_config") or next(filter(None, (read_json(folder, file) for file in _OWN_FILES)), None)
    if not found:
        return None
    method = found.get("quant_method") or ("awq" if "zero_point" in found else "gptq")
    return Settings(method, found)
