"""Triton's driver without a GPU: kernels are compiled for a GPU and "loaded"; a launch costs the host what Triton and the caller
take for it, and then does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch


class Launched(NamedTuple):
    """``binary``: which one, and the device that it was loaded for; ``args``: as the driver was given them, constexprs included."""

    binary: tuple[str, int]
    grid: tuple[int, int, int]
    args: tuple[Any, ...]


class StubDriver:
    """One driver for several devices of one kind, whose numbers begin where real ones do not. ``launches``: what was launched, or
    None where nobody asks for it."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.device = 2000
        self.launches: list[Launched] | None = None
        self._target = GPUTarget("cuda", arch, 32)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=lambda name, binary, shared, device: (None, 0, 32, 0, 1024),  # a module would be unloaded in the end
        )

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        """What Triton makes for every kernel: packs the arguments and launches."""
        binary = (metadata.hash, self.device)

        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *rest: Any) -> None:
            if self.launches is not None:
                launch_metadata, enter, leave, *args = rest
                if enter is not None:
                    enter(launch_metadata)
                self.launches.append(Launched(binary, (x, y, z), tuple(args)))
                if leave is not None:
                    leave(launch_metadata)

        return launch

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def stub_driver(arch: int = 90) -> Iterator[StubDriver]:
    """Inside, Triton's kernels are compiled for ``arch`` and go to the stub."""
    runtime = pytest.importorskip("triton.runtime")
    stub, before = StubDriver(arch), runtime.driver._active
    runtime.driver.set_active(stub)
    try:
        yield stub
    finally:
        runtime.driver._active = before
