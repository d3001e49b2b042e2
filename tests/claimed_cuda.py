"""A GPU that is not there: CPU tensors that say they are on "cuda", so that the engine takes its paths for GPUs on any machine.

torch computes on the CPU. What a GPU would refuse fails: tensors of two devices in one operation, and while the mode is ``strict``
everything that makes the host wait for the device (reading values, boolean masks, index tensors and copies from pageable host
memory, blocking copies), or that a graph cannot record while one is being captured. Triton kernels are not run: a launch
checks its arguments and its grid, and leaves outputs 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MAX_GRID = (2**31 - 1, 65535, 65535)
WAITS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "argwhere",
    "masked_select",
    "unique",
    "unique_consecutive",
    "bincount",
    "equal",
    "allclose",
    "isin",
    "is_nonzero",
    "histc",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "__array__",
    "__repr__",
    "__format__",
    "tensor_split",
    "masked_scatter_",
    "combinations",
}
"""Functions whose result, or its shape, the host reads from the device."""


class WaitError(AssertionError):
    """The host would wait for the device."""


class DeviceMixError(RuntimeError):
    """Tensors of two devices meet."""


class ClaimedTensor(torch.Tensor):
    """In host memory, and says that it is on a GPU."""


class PinnedTensor(torch.Tensor):
    """On the host, in memory from which (and to which) copies do not block."""


class ClaimedCuda(TorchFunctionMode):
    """The mode.

    launches   names of the Triton kernels that were launched, in order
    recorded   the memory that captured work reads or writes and that was there before the capture; what is allocated inside one
               belongs to the graphs' pool
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_strict = self.is_capturing = False
        self.launches: list[str] = []
        self.recorded: list[StorageWeakRef] = []
        self._known: dict[int, StorageWeakRef] = {}

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Inside, nothing may wait for the device."""
        before, self.is_strict = self.is_strict, True
        try:
            yield
        finally:
            self.is_strict = before

    def waits(self, what: str) -> None:
        """To be called where the host would wait."""
        if self.is_strict or self.is_capturing:
            raise WaitError(f"{what} {'cannot be captured' if self.is_capturing else 'waits for the device'}")

    def _capture_memory(self, values: Any, own: bool = False) -> None:
        """``own``: memory not met before is the graphs' own."""
        if self.is_capturing:
            for tensor in _tensors(values):
                storage = StorageWeakRef(tensor.untyped_storage())
                if storage.cdata not in self._known:
                    self._known[storage.cdata] = storage  # the reference keeps the key from being used again
                    self.recorded += [] if own else [storage]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__
        if name == "__get__" and (found := _attribute(func.__self__.__name__, args[0])) is not None:
            return found
        tensors = list(_tensors((*args, *kwargs.values())))
        claimed = any(isinstance(t, ClaimedTensor) for t in tensors)
        self._capture_memory(tensors)
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__deepcopy__":
                plain, memo = args[0].as_subclass(torch.Tensor), args[1]
                memo.setdefault(id(memo), []).append(plain)  # the memo goes by identity, so that it must outlive the copying
                return _wrap(plain.__deepcopy__(memo), type(args[0]))
            if name in ("is_pinned", "pin_memory"):
                return args[0].as_subclass(PinnedTensor) if name == "pin_memory" else isinstance(args[0], PinnedTensor)
            if name in ("to", "cuda", "copy_"):
                moved = self._move(name, func, args, kwargs)
                self._capture_memory((moved,), own=True)
                return moved
            if claimed:
                self._check(name, args, kwargs, tensors)
            target: type[torch.Tensor] = ClaimedTensor if claimed else torch.Tensor
            if kwargs.get("device") is not None:
                target = ClaimedTensor if torch.device(kwargs["device"]).type == "cuda" else torch.Tensor
                kwargs["device"] = "cpu"
            if target is ClaimedTensor and name in ("tensor", "as_tensor"):
                self.waits(f"torch.{name} with a device")
            if kwargs.pop("pin_memory", False):
                target = PinnedTensor
            out = func(*args, **kwargs)
            if target is ClaimedTensor and name in ("empty", "empty_like", "new_empty", "empty_strided"):
                out.zero_()  # no kernel will write it
            self._capture_memory((out,), own=True)
            return _wrap(out, target)

    def _check(self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        """Of a function with a tensor on the GPU among its arguments."""
        one_argument = name == "where" and len(args) + len(kwargs) == 1
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None and len(tensors) > 1
        if name in WAITS or one_argument or repeats:
            self.waits(name)
        if self.is_capturing and any(not isinstance(t, ClaimedTensor) for t in tensors):
            raise WaitError(f"{name} of a tensor on the host cannot be captured")
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
            for index in _tensors(args[1], slices=True):
                if not isinstance(index, ClaimedTensor):
                    self.waits(f"{name} with an index on the host")
                if index.dtype in (torch.bool, torch.uint8) or index.dim() == 0:
                    self.waits(f"{name} with a mask or a number on the device")
            if name == "__setitem__" and isinstance(args[2], torch.Tensor) and not isinstance(args[2], ClaimedTensor):
                self.waits("__setitem__ of a tensor on the host")
        elif any(not isinstance(t, ClaimedTensor) and t.dim() > 0 for t in tensors):
            raise DeviceMixError(f"{name} takes tensors on cuda and on cpu: {[(type(t).__name__, *t.shape) for t in tensors]}")

    def _move(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """``to``, ``cuda`` and ``copy_``, which may cross the border."""
        source, here = args[0], isinstance(args[0], ClaimedTensor)
        blocking = not kwargs.get("non_blocking", False)
        if name == "copy_":
            target, source = args[0], args[1]
            there = isinstance(source, ClaimedTensor)
            if here != there:
                self._crosses("copy_", blocking or not isinstance(source if here else target, PinnedTensor))
            return func(*args, **kwargs)
        places = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, str | torch.device | torch.Tensor)]
        goal = CUDA if name == "cuda" else None
        for place in places:
            claimed = isinstance(place, ClaimedTensor)
            goal = (CUDA if claimed else CPU) if isinstance(place, torch.Tensor) else torch.device(place)
        there = here if goal is None else goal.type == "cuda"
        if here != there:
            self._crosses(f"to {goal}", blocking or not isinstance(source, PinnedTensor))
        dtypes = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)]
        dtypes += [p.dtype for p in places if isinstance(p, torch.Tensor)]
        copy = here != there or kwargs.get("copy", False)
        if not copy and (not dtypes or dtypes[0] == source.dtype):
            return source
        return _wrap(source.to(dtypes[0] if dtypes else source.dtype, copy=copy), ClaimedTensor if there else torch.Tensor)

    def _crosses(self, what: str, blocks: bool) -> None:
        if blocks or self.is_capturing:
            self.waits(f"{what} across the border, blocking or from memory that is not pinned,")

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """In place of ``JITFunction.run``."""
        for value in (*args, *kwargs.values()):
            base = getattr(value, "base", value)
            if isinstance(base, torch.Tensor):
                assert isinstance(base, ClaimedTensor), f"{kernel.__name__} is given a tensor on the host, {list(base.shape)}"
            else:
                known = value is None or type(value) in (int, float, bool, str) or isinstance(value, tuple)
                assert known, f"{kernel.__name__} is given a {type(value)}, which a launch does not take"
        sizes = tuple(grid({**dict(zip(kernel.arg_names, args)), **kwargs}) if callable(grid) else grid)
        assert all(type(n) is int and 0 < n <= limit for n, limit in zip(sizes, MAX_GRID)), f"{kernel.__name__}: grid {sizes}"
        self._capture_memory([getattr(value, "base", value) for value in (*args, *kwargs.values())])
        self.launches.append(kernel.__name__)


def _attribute(name: str, tensor: torch.Tensor) -> Any:
    here = isinstance(tensor, ClaimedTensor)
    return {"device": CUDA if here else CPU, "is_cuda": here, "is_cpu": not here}.get(name)


def _tensors(values: Any, slices: bool = False) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value, slices)
    elif slices and isinstance(values, slice):
        yield from _tensors((values.start, values.stop, values.step))


def _wrap(out: Any, kind: type[torch.Tensor]) -> Any:
    if isinstance(out, torch.Tensor):
        return out if type(out) is not torch.Tensor or kind is torch.Tensor else out.as_subclass(kind)
    if isinstance(out, tuple | list) and any(isinstance(value, torch.Tensor) for value in out):
        return type(out)([_wrap(value, kind) for value in out])
    return out


class _HostGenerator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> _HostGenerator:
        return super().__new__(cls, "cpu")


class _Context:
    """What ``torch.cuda`` has of streams, events and graphs: nothing happens in them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Context:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def replay(self) -> None: ...


@contextlib.contextmanager
def claimed_cuda(arch: tuple[int, int] = (9, 0), free_bytes: int = 1 << 30) -> Iterator[ClaimedCuda]:
    """A GPU of compute capability ``arch`` with twice ``free_bytes`` of memory is there, or so torch says."""
    mode = ClaimedCuda()

    @contextlib.contextmanager
    def capture(graph: object, pool: object = None) -> Iterator[None]:
        mode.is_capturing = True
        try:
            yield
        finally:
            mode.is_capturing = False

    nothing: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="Claimed", major=arch[0], minor=arch[1], multi_processor_count=132
        ),
        "Stream": _Context,
        "CUDAGraph": _Context,
        "stream": _Context,
        "current_stream": _Context,
        "graph": capture,
        "graph_pool_handle": nothing,
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "synchronize": lambda *args: mode.waits("torch.cuda.synchronize"),
        "mem_get_info": lambda *args: (free_bytes, 2 * free_bytes),
        "memory_allocated": lambda *args: 0,
        "memory_reserved": lambda *args: 0,
        "max_memory_allocated": lambda *args: 0,
        "device": _Context,
    }
    with pytest.MonkeyPatch.context() as patch, mode:
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(torch, "Event", _Context)
        patch.setattr(torch, "Generator", _HostGenerator)
        jit = pytest.importorskip("triton.runtime.jit")
        patch.setattr(jit.JITFunction, "run", lambda kernel, *args, **kwargs: mode.launch(kernel, *args, **kwargs))
        yield mode


def names(launches: Iterable[str]) -> set[str]:
    """Which kernels were launched, without a kernel's private underscore."""
    return {name.strip("_") for name in launches}
