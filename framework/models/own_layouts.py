"""Fields in the config.json of models whose code stands beside their weights, or whose library lets all pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WHERE = "the model's config.json (or model.architecture) has"


def section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in config.json. Raises ValueError where it is none."""
    value = found.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{_WHERE} {name}={value!r}, expected an object")
    return value


def check_sizes(found: Mapping[str, Any], *names: str, within: str = "") -> None:
    """Raises ValueError for a field that is no positive whole number. within: the section that ``found`` is."""
    for name in names:
        if type(value := found.get(name)) is not int or value < 1:
            raise ValueError(f"{_WHERE} {_path(within, name)}={value!r}, expected a positive whole number")


def check_positive(found: Mapping[str, Any], name: str, within: str = "") -> None:
    """Raises ValueError for a field that is no positive number."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{_WHERE} {_path(within, name)}={value!r}, expected a positive number")


def check_computed(found: Mapping[str, Any], computed: Mapping[str, Any], model_type: str, within: str = "") -> None:
    """Raises ValueError for a field that asks for something else than our modules compute."""
    for name, value in computed.items():
        if found.get(name) != value:
            raise ValueError(
                f"{_WHERE} {_path(within, name)}={found.get(name)!r}, but of model_type {model_type!r} images are served where it "
                f"is {value!r}"
            )


def _path(within: str, name: str) -> str:
    return f"{within}.{name}" if within else name
