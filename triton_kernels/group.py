"""Groups of ranks: who share the work of a model, and how tensors pass between them.

Every rank of a group calls the same primitives in the same order, with tensors of equal shapes; one that does not leaves the
others waiting until their timeout. ``src`` and ``dst`` are ranks within the group.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

WAIT_S = 300.0
"""How long a thread waits for the other ranks before it gives them up."""


@dataclass(frozen=True)
class SymmetricMemory:
    """Memory of equal size on each rank, which kernels of every rank can read and write. It was zeros at first.

    own        uint8 [num_bytes]: that of this rank
    addresses  int64 [size]: where that of each rank begins, as this rank sees it; on the device
    kept       what keeps the others' memory mapped
    """

    own: torch.Tensor
    addresses: torch.Tensor
    kept: Any = None


class Group(ABC):
    """``rank``: which of ``size`` ranks this one is; ``backend``: what tensors pass by: solo, threads, gloo or nccl."""

    rank: int
    size: int
    backend: str

    def __init__(self) -> None:
        self._memory: list[SymmetricMemory] = []

    @abstractmethod
    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x of every rank in rank order, as new tensors."""

    @abstractmethod
    def broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        """Fills contiguous x with that of rank ``src``, and returns it."""

    @abstractmethod
    def send(self, x: torch.Tensor, dst: int) -> None:
        """Gives contiguous x to rank ``dst``, which receives a tensor of its shape and dtype."""

    @abstractmethod
    def recv(self, x: torch.Tensor, src: int) -> torch.Tensor:
        """Fills contiguous x with what rank ``src`` sends, and returns it."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns once every rank has called it."""

    def alone(self) -> AbstractContextManager[Any]:
        """Inside, of ranks that share a process only this one runs: for libraries that are not made for threads."""
        return contextlib.nullcontext()

    def symmetric(self, num_bytes: int, device: torch.device) -> SymmetricMemory:
        """At least ``num_bytes``, the same for all who ask this group: layers run one after another. A larger piece is made by all
        ranks together; earlier ones stay where they are, because recorded graphs hold their addresses."""
        if not self._memory or self._memory[-1].own.numel() < num_bytes:
            self._memory.append(self._allocate(1 << max(num_bytes - 1, 1).bit_length(), device))
        return self._memory[-1]

    @abstractmethod
    def _allocate(self, num_bytes: int, device: torch.device) -> SymmetricMemory: ...

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self  # a copied layer belongs to the same ranks


class SoloGroup(Group):
    """One rank on its own."""

    rank, size, backend = 0, 1, "solo"

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.clone() for _ in range(self.size)]

    def broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        return x

    def send(self, x: torch.Tensor, dst: int) -> None:
        raise ValueError("a group of one rank has nobody to send to")

    def recv(self, x: torch.Tensor, src: int) -> torch.Tensor:
        raise ValueError("a group of one rank has nobody to receive from")

    def barrier(self) -> None:
        pass

    def _allocate(self, num_bytes: int, device: torch.device) -> SymmetricMemory:
        own = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        return SymmetricMemory(own, torch.full((self.size,), own.data_ptr(), device=device))


class _Room:
    """What the threads of a group share: a slot for each rank's tensor, a mailbox per pair of ranks, and who failed."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.barrier = threading.Barrier(size, timeout=timeout_s)
        self.slots: list[Any] = [None] * size
        self.mail: list[list[SimpleQueue[torch.Tensor | None]]] = [[SimpleQueue() for _ in range(size)] for _ in range(size)]
        self.lock = threading.Lock()
        self.failure = ""


class ThreadGroup(Group):
    """N ranks as threads of one process. A rank is a context: where an exception leaves it, the collectives of all others raise
    RuntimeError with its number. Tensors lie on the CPU, or are used on one stream."""

    backend = "threads"

    def __init__(self, rank: int, room: _Room) -> None:
        super().__init__()
        self.rank, self.size, self._room = rank, len(room.slots), room

    @classmethod
    def make(cls, size: int, timeout_s: float = WAIT_S) -> list[ThreadGroup]:
        """The group as each of ``size`` ranks has it."""
        room = _Room(size, timeout_s)
        return [cls(rank, room) for rank in range(size)]

    def __enter__(self) -> ThreadGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.abort(f"rank {self.rank} of {self.size} failed: {type(error).__name__}: {error}")

    def abort(self, reason: str) -> None:
        """Ends what ranks wait for, now and from now on, with RuntimeError: the reason, of several the first."""
        room = self._room
        room.failure = room.failure or reason
        room.barrier.abort()
        for mailbox in (box for boxes in room.mail for box in boxes):
            mailbox.put(None)

    def alone(self) -> AbstractContextManager[Any]:
        return self._room.lock

    def barrier(self) -> None:
        try:
            self._room.barrier.wait()
        except threading.BrokenBarrierError:
            raise RuntimeError(
                self._room.failure or f"rank {self.rank} waited for the others of {self.size}: one of them skipped a collective"
            ) from None

    @contextlib.contextmanager
    def shared(self, x: Any) -> Iterator[list[Any]]:
        """What every rank brings, in rank order, itself and not a copy: to be read inside only."""
        self._room.slots[self.rank] = x
        self.barrier()
        yield list(self._room.slots)
        self.barrier()

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        with self.shared(x) as parts:
            return [part.clone() for part in parts]

    def broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        with self.shared(x) as parts:
            return x if src == self.rank else x.copy_(parts[src])

    def send(self, x: torch.Tensor, dst: int) -> None:
        self._room.mail[self.rank][dst].put(x.clone())

    def recv(self, x: torch.Tensor, src: int) -> torch.Tensor:
        mailbox = self._room.mail[src][self.rank]
        sent = mailbox.get()
        if sent is None:
            mailbox.put(None)  # for the next that waits
            raise RuntimeError(self._room.failure)
        return x.copy_(sent)

    def _allocate(self, num_bytes: int, device: torch.device) -> SymmetricMemory:
        own = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        with self.shared(own) as parts:
            return SymmetricMemory(own, torch.tensor([part.data_ptr() for part in parts], device=device), parts)


class ProcessGroup(Group):
    """One rank per process: a group of torch.distributed, whose timeout holds. With gloo the peers of a dead rank raise; with nccl
    they hang until somebody ends them. Tensors travel as bytes, so that any dtype does."""

    def __init__(self, handle: dist.ProcessGroup | None = None) -> None:
        """handle: None = that of all processes."""
        super().__init__()
        self.handle = dist.group.WORLD if handle is None else handle
        self.rank, self.size = dist.get_rank(self.handle), dist.get_world_size(self.handle)
        self.backend = dist.get_backend(self.handle)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(self.size)]
        if x.numel():
            dist.all_gather([_bytes(part) for part in parts], _bytes(x.contiguous()), group=self.handle)
        return parts

    def broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        if x.numel():
            dist.broadcast(_bytes(x), group=self.handle, group_src=src)
        return x

    def send(self, x: torch.Tensor, dst: int) -> None:
        if x.numel():
            dist.send(_bytes(x), group=self.handle, group_dst=dst)

    def recv(self, x: torch.Tensor, src: int) -> torch.Tensor:
        if x.numel():
            dist.recv(_bytes(x), group=self.handle, group_src=src)
        return x

    def barrier(self) -> None:
        dist.barrier(group=self.handle)

    def _allocate(self, num_bytes: int, device: torch.device) -> SymmetricMemory:
        import torch.distributed._symmetric_memory as symmetric_memory

        own = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=device).zero_()
        assert self.handle is not None
        mapped = symmetric_memory.rendezvous(own, self.handle)
        mapped.barrier()  # nobody writes into memory that is still to be zeroed
        return SymmetricMemory(own, torch.tensor(mapped.buffer_ptrs, device=device), mapped)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """x as uint8 [num_bytes], in the same memory."""
    return x.view(-1).view(torch.uint8)
