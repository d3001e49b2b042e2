"""Every op, by name: what the modules of this package define."""

import importlib
import pkgutil

from ..op import Op

OPS: dict[str, Op] = {
    found.name: found
    for module in pkgutil.iter_modules(__path__, f"{__name__}.")
    for found in vars(importlib.import_module(module.name)).values()
    if isinstance(found, Op)
}
