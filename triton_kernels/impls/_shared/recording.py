"""Recordings of a function's work on a CPU: what CUDA graphs are on a GPU. A replay runs its C kernels by one call, without Python
between them; torch operations in between are called as they were."""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .native_call import RECORDER, Entry, replay

_ALIGNMENT = 64
_ALLOCATE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_UNRECORDABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Arena:
    """Memory for what recordings compute on the way. A block is free again once the last tensor in it is gone: a replay does the
    same things in the same order, so that what shared memory while it was recorded can share it then."""

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}  # by address
        self._free: list[np.ndarray] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor."""
        size = math.prod(shape) * dtype.itemsize
        fitting = [block for block in self._free if len(block) >= size]
        if fitting:
            block = min(fitting, key=len)
            self._free = [other for other in self._free if other is not block]
        else:
            whole = np.empty(size + _ALIGNMENT, dtype=np.uint8)
            block = whole[-whole.ctypes.data % _ALIGNMENT :][:size]
            self._blocks[block.ctypes.data] = block
        part = block[:size]
        weakref.finalize(part, lambda: self._free.append(block))
        return torch.from_numpy(part).view(dtype).view(shape)

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in a block, which is its storage."""
        return tensor.untyped_storage().data_ptr() in self._blocks


@dataclass(frozen=True)
class Recording:
    """parts: what a replay calls in turn, most of the time one; output: what the function returned, computed anew by each replay;
    arena: where what it computes on the way lies; num_kernels: C kernels among what was recorded."""

    parts: tuple[Callable[[], Any], ...]
    output: Any
    arena: Arena
    num_kernels: int

    def replay(self) -> Any:
        for part in self.parts:
            part()
        return self.output


class _Mode(TorchDispatchMode):
    """Sees every torch operation and every C kernel."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self._arena = arena
        self._kept: list[Any] = []
        self._entries: list[Entry] = []
        self._parts: list[Callable[[], Any]] = []
        self.num_kernels = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _UNRECORDABLE & set(func.tags) and not _is_gather(func, args):
            raise RuntimeError(f"a decode step cannot be recorded: it looks at data, by {func}; set graphs.enabled=false")
        with self:  # in inference mode functions arrive here that are made of others, of which one may look at data
            composed = func.decompose(*args, **kwargs)
        if composed is not NotImplemented:
            return composed
        result = func(*args, **kwargs)
        if func.overloadpacket.__name__ in _ALLOCATE:
            plain = result.is_cpu and result.is_contiguous()
            return self._arena.empty(result.shape, result.dtype) if plain else result
        again = functools.partial(func, *args, **kwargs)
        if func._schema.is_mutable:
            self._add(again)
        elif not _is_view(result, args):
            self._add(functools.partial(_into, result, again))
        return result

    def native(self, entry: Entry, arguments: ctypes.Structure, tensors: list[torch.Tensor]) -> None:
        self._entries.append(entry)
        self._kept += [arguments, *(tensor for tensor in tensors if not self._arena.owns(tensor))]
        self.num_kernels += 1

    def between(self, part: Callable[[], Any]) -> None:
        self._add(part)

    def finish(self) -> tuple[Callable[[], Any], ...]:
        self._end_kernels()
        return tuple(self._parts)

    def _add(self, part: Callable[[], Any]) -> None:
        self._end_kernels()
        self._parts.append(part)

    def _end_kernels(self) -> None:
        if self._entries:
            entries = (Entry * len(self._entries))(*self._entries)
            self._parts.append(functools.partial(_run, entries, self._kept))
            self._entries, self._kept = [], []


def _is_view(result: Any, args: Sequence[Any]) -> bool:
    """Whether an operation only looked at memory of its arguments in another way."""
    given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor) and arg.layout == torch.strided}
    return all(one.untyped_storage().data_ptr() in given for one in tree_leaves(result) if isinstance(one, torch.Tensor))


def _is_gather(func: Any, args: Sequence[Any]) -> bool:
    """Whether an indexing operation takes numbers, not a mask, of which the result's shape would depend."""
    return func is torch.ops.aten.index.Tensor and not any(i is not None and i.dtype == torch.bool for i in args[1])


def _run(entries: ctypes.Array[Entry], kept: list[Any]) -> None:
    """kept: what the entries point to."""
    replay(entries, len(entries), True)


def _into(results: Any, again: Callable[[], Any]) -> None:
    """Computes again, into the tensors of the first time."""
    values = again()
    pairs = ((results, values),) if isinstance(results, torch.Tensor) else zip(results, values)
    for result, value in pairs:
        result.copy_(value)


def record(run: Callable[[], Any], arena: Arena) -> Recording:
    """Runs the function and records what it does; its output is computed. What it reads is read again by each replay, from where it
    lay; what it decides on the host is not decided again. Recordings that share an arena must not run at the same time, and the
    output is valid until the next of them runs. Raises RuntimeError for an operation whose result depends on data in its shape."""
    mode = _Mode(arena)
    token = RECORDER.set(mode)
    try:
        with mode:
            output = run()
    finally:
        RECORDER.reset(token)
    return Recording(mode.finish(), output, arena, mode.num_kernels)


def is_recording() -> bool:
    """Whether a recording is being made."""
    return RECORDER.get() is not None


def run_between(part: Callable[[], Any]) -> None:
    """Calls ``part``, which is to compute no tensors, and lets a recording that is being made call it in each replay, too, between
    what came before and what comes next."""
    recorder = RECORDER.get()
    if recorder is not None:
        recorder.between(part)
    part()
