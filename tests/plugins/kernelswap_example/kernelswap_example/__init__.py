"""An example of a plugin package: the entry point hands over the registry, and the modules are found by a scan."""

from triton_kernels.registry import Registry

__version__ = "1.2.3"


def register(registry: Registry) -> None:
    registry.add_package(__name__)
