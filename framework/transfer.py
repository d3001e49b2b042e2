"""Copies between host and device that wait for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor on ``device``; on a GPU the copy is queued behind what runs, from pinned memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """Tensors on their way to the host. The copy is queued at once, so that it does not wait for later steps."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._event: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._tensors = tuple(torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors)
            self._event = torch.cuda.Event()
            self._event.record()

    def lists(self) -> list[Any]:
        """Waits for the copy; one (nested) list per tensor."""
        if self._event is not None:
            self._event.synchronize()
        return [t.tolist() for t in self._tensors]
