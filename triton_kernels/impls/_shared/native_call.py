"""Calls of C kernels: a function of a C source, run by all threads at once, now or again from a recording."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from .native_code import library

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_PARALLEL_WORK = 32768
"""Elements. Waking the other threads costs more than less work than this."""


class Entry(ctypes.Structure):
    """``struct entry`` of native_replay.c: a kernel and its arguments."""

    _fields_ = [("run", ctypes.c_void_p), ("call", ctypes.c_void_p)]


class Recorder(Protocol):
    """Who wants to know of every call."""

    def native(self, entry: Entry, arguments: ctypes.Structure, tensors: list[torch.Tensor]) -> None:
        """``entry`` runs on ``arguments``, which point into ``tensors``."""

    def between(self, part: Callable[[], Any]) -> None:
        """``part`` runs at this place."""


RECORDER: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


class NativeKernel:
    """``name`` of a C source, compiled for ``dtype``. ``fields``: those of its struct, in order, a letter each: p a pointer, i an
    int64, f a float."""

    def __init__(self, source: str, dtype: torch.dtype, name: str, fields: str, *defines: str) -> None:
        function = getattr(library(source, dtype, *defines), name)
        self._address = ctypes.cast(function, ctypes.c_void_p).value
        self._struct = _struct(fields.replace(" ", ""))

    def __call__(self, work: int, *arguments: torch.Tensor | float | None) -> None:
        """work: elements that it touches; arguments: one per field, a tensor or None for a pointer."""
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        call = self._struct(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments])
        entry = Entry(self._address, ctypes.addressof(call))
        replay(ctypes.pointer(entry), 1, work > _PARALLEL_WORK)
        recorder = RECORDER.get()
        if recorder is not None:
            recorder.native(entry, call, tensors)


def replay(entries: Any, count: int, parallel: bool) -> None:
    """Runs ``count`` kernels one after the other; entries: an array of Entry, or a pointer to one."""
    _replay()(entries, count, parallel)


@functools.cache
def _replay() -> Any:
    function = library("native_replay.c", torch.float32).replay
    function.argtypes, function.restype = [ctypes.POINTER(Entry), ctypes.c_int64, ctypes.c_int64], None
    return function


@functools.cache
def _struct(fields: str) -> type[ctypes.Structure]:
    return type("Arguments", (ctypes.Structure,), {"_fields_": [(f"field{i}", _TYPES[f]) for i, f in enumerate(fields)]})
