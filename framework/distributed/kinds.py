"""What workers can be started with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class LauncherKind:
    """A class of launchers, and what it needs.

    module, class_name  where the class is (see launchers/protocol.py); its constructor takes nothing
    package, extra      what must be installed, and the extra of this package that brings it
    """

    module: str
    class_name: str
    package: str | None = None
    extra: str | None = None

    @property
    def reason(self) -> str | None:
        """Why it cannot be used here; None: it can."""
        if self.package is None:
            return None
        found = find_spec(self.package)
        if found is not None and found.origin is not None:  # not a mere folder, as Ray's own /tmp/ray is to a script in /tmp
            return None
        return f"the package {self.package} is not installed: pip install 'kernelswap[{self.extra}]'"

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(self.module), self.class_name)


LAUNCHERS = {
    "processes": LauncherKind("framework.distributed.launchers.processes", "ProcessLauncher"),
    "threads": LauncherKind("framework.distributed.launchers.threads", "ThreadLauncher"),
    "ray": LauncherKind("framework.distributed.launchers.ray", "RayLauncher", package="ray", extra="ray"),
}
