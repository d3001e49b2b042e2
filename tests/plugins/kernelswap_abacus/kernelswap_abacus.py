"""A device from outside the tree: the CPU under another name, with little memory and an architecture of its own."""

from __future__ import annotations

import torch

from framework.worker.devices import Device, Memory


class Abacus(Device):
    """Two of them, each of 100 MB, of which 80 MB are left."""

    priority = 5
    in_flight_steps = 3

    def __init__(self, index: int | None = None) -> None:
        self.torch, self._index = torch.device("cpu"), index or 0

    @classmethod
    def count(cls) -> int:
        return 2

    @property
    def name(self) -> str:
        return f"Abacus {self._index}"

    @property
    def arch(self) -> str:
        return "wood"

    def memory(self) -> Memory:
        return Memory(80_000_000, 100_000_000)
