"""Copies between host and device that wait for nothing, and how they fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ..engine.errors import DeviceLostError

_ALIGNMENT = 16
"""Bytes. Kernels are compiled for addresses that are multiples of it, and once more for those that are not."""


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor on ``device``; off the CPU the copy is queued behind what runs, from pinned memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def all_to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """As ``to_device`` for each, but off the CPU all go in one copy."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    if device.type == "cpu":
        return tensors
    host = torch.empty(packed_bytes(tensors), dtype=torch.uint8, pin_memory=True)
    for view, tensor in zip(packed_views(host, tensors), tensors):
        view.copy_(tensor)
    return packed_views(host.to(device, non_blocking=True), tensors)


def packed_bytes(like: Sequence[torch.Tensor]) -> int:
    """Size of a buffer that holds tensors like these, each at an aligned address."""
    return sum(_aligned_bytes(tensor) for tensor in like)


def packed_views(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Contiguous tensors of the dtypes and shapes of ``like`` in a uint8 buffer, one behind the other."""
    starts = accumulate((_aligned_bytes(tensor) for tensor in like), initial=0)
    return [buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape) for start, tensor in zip(starts, like)]


def _aligned_bytes(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


class HostCopy:
    """Tensors on their way to the host. The copy is queued at once, so that it does not wait for later steps."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._event: torch.Event | None = None
        if not tensors[0].is_cpu:
            self._tensors = tuple(torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors)
            self._event = torch.Event(tensors[0].device)
            self._event.record()

    def lists(self) -> list[Any]:
        """Waits for the copy; one (nested) list per tensor."""
        return [array.tolist() for array in self.arrays()]

    def arrays(self) -> list[np.ndarray]:
        """Waits for the copy; one array per tensor."""
        if self._event is not None:
            self._event.synchronize()
        return [t.numpy() for t in self._tensors]


def is_device_loss(error: BaseException) -> bool:
    """Whether a device can do nothing more after it. What a kernel did wrong (an illegal address) breaks the process's context;
    too little memory does not."""
    return isinstance(error, torch.AcceleratorError)


@contextmanager
def device_losses() -> Iterator[None]:
    """Turns the loss of the device into DeviceLostError."""
    try:
        yield
    except Exception as error:
        if is_device_loss(error):
            raise DeviceLostError(str(error)) from error
        raise
