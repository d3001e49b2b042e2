"""Families of models from outside the tree: entry points of installed packages."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final

from .families import FAMILIES, Family

ENTRY_POINT_GROUP: Final = "kernelswap.models"


def family_names() -> list[str]:
    """The model types that have a family, those of this package first."""
    return list(dict.fromkeys([*FAMILIES, *sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))]))


def find_family(model_type: str) -> Family | None:
    """The family of a model type: of this package, else of an installed one, whose entry point named ``model_type`` leads to a
    ``Family``. Raises ValueError for one that cannot be loaded."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=model_type))
    if not found:
        return None
    try:
        family = found[0].load()
    except Exception as error:
        raise ValueError(
            f"model_type {model_type!r} comes from {found[0].value}, which could not be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(family, Family):
        raise ValueError(f"model_type {model_type!r} comes from {found[0].value}, which is {family!r}; a Family is expected")
    return family
