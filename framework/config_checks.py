"""What the configuration is checked with: types of fields, and conditions that name their key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def section_of(kind: type[T], key: str, given: Mapping[str, Any], prefix: str) -> T:
    """A section of the configuration from a mapping of its fields, which callers call ``key``. Raises ValueError for what is no
    mapping, fields that the section does not have, and values of other types, which are then named with ``prefix``."""
    require(isinstance(given, Mapping), key, given, "a dictionary")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{key} has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    section = kind(**given)
    check_types(section, prefix)
    return section


def check_types(config: Any, prefix: str = "") -> None:
    """Raises ValueError for the first value that is not of its field's type; Hydra checks this itself, Python does not. A whole
    number does where a fraction is asked for."""
    for name, kind in get_type_hints(type(config)).items():
        value, key = getattr(config, name), prefix + name
        require(_fits(value, kind), key, value, f"of type {kind.__name__ if isinstance(kind, type) else kind}")
        if is_dataclass(value):
            check_types(value, f"{key}.")


def _fits(value: Any, kind: Any) -> bool:
    inner = get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if inner:
        return any(_fits(value, one) for one in inner)
    if isinstance(value, bool) and kind in (int, float):
        return False
    return kind is Any or isinstance(value, (int, float) if kind is float else kind)


def require(condition: object, key: str, value: object, expected: str) -> None:
    """Raises ValueError that names the key, its value and what is expected, unless the condition holds."""
    if not condition:
        raise ValueError(f"{key}={value!r} cannot work: it must be {expected}")
