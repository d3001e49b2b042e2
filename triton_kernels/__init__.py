"""The kernels: contracts (ops), implementations (impls), and the registry that joins them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .registry import Registry

__version__ = "0.1.0"


def register(registry: Registry) -> None:
    """Entry point of the kernels in this tree; a plugin package has the same function."""
    registry.add_package("triton_kernels.impls")
