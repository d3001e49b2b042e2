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
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise self.refusal(name, value, f"one of {', '.join(map(str, allowed))}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Raises ValueError for anything but true and false."""
        return self._typed(name, default, bool, "true or false")

    def number(self, name: str, default: int) -> int:
        """Raises ValueError for anything but an integer."""
        return self._typed(name, default, int, "a whole number")

    def names(self, name: str) -> tuple[str, ...]:
        """Names of modules, or "re:" and regular expressions for them; none if not given. Raises ValueError for anything else."""
        found = self._typed(name, [], list, "a list of names")
        for one in found:
            if not isinstance(one, str):
                raise self.refusal(name, found, "a list of names")
            if one.startswith("re:"):
                self.pattern(name, one.removeprefix("re:"))
        return tuple(found)

    def nested_names(self, name: str) -> tuple[str, ...]:
        """Names in lists of lists, however deep. Raises ValueError for anything else."""
        found = self.get(name, [])
        names = _flat([found])
        if not all(isinstance(one, str) for one in names):
            raise self.refusal(name, found, "a list of names, or of lists of them")
        return tuple(names)

    def section(self, name: str) -> Settings:
        """A section within; empty if not given. Raises ValueError for anything else."""
        return Settings(self.method, self._typed(name, {}, dict, "a section of settings"), f"{self.where}.{name}")

    def sections(self, name: str) -> dict[str, Settings]:
        """Sections by their names; none if not given. Raises ValueError for anything else."""
        section = self.section(name)
        return {key: section.section(key) for key in section.values}

    def pattern(self, name: str, regex: str) -> re.Pattern[str]:
        """Raises ValueError for what is no regular expression."""
        try:
            return re.compile(regex)
        except re.error as error:
            raise self.refusal(name, regex, f"a regular expression ({error})") from None

    def _typed(self, name: str, default: Any, kind: type, expected: str) -> Any:
        value = self.get(name, default)
        if type(value) is not kind:
            raise self.refusal(name, value, expected)
        return value

    def group_size(self, default: int = 128) -> int:
        """Inputs that share a scale; -1: all."""
        value = self.get("group_size", default)
        if type(value) is not int or (value < 1 and value != -1):
            raise self.refusal("group_size", value, "-1 or a positive number")
        return value

    def refusal(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.where}.{name}={value!r} of {self.method} cannot be served: it must be {expected}")


def _flat(names: Any) -> list[Any]:
    return [name for part in names for name in _flat(part)] if isinstance(names, list) else [names]


def matches_any(module: str, names: Iterable[str]) -> bool:
    """Whether a list like compressed-tensors' ``ignore`` holds a module: by its name, or by "re:" and a regular expression that
    matches the beginning of it."""
    return any(bool(re.match(name[3:], module)) if name.startswith("re:") else name == module for name in names)


def checkpoint_settings(config: Mapping[str, Any], folder: Path | None) -> Settings | None:
    """What a checkpoint says of its quantization; None: nothing."""
    found = config.get("quantization_config") or next(filter(None, (read_json(folder, file) for file in _OWN_FILES)), None)
    if not found:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"quantization_config={found!r} cannot be served: it must be a section of settings with a quant_method")
    method = found.get("quant_method") or ("awq" if "zero_point" in found else "gptq")
    if not isinstance(method, str):
        raise ValueError(f"quantization_config.quant_method={method!r} cannot be served: it must be a name")
    return Settings(method, found)
