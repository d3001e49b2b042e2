"""The kinds of devices that the local executor runs on: all that differs between them is asked of a Device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import torch

from ..config import EngineConfig
from ..engine.kv_cache.memory import cache_budget
from ..plan import Arena, Recording, device_arch, record
from .host_memory import Memory, host_memory

ENTRY_POINT_GROUP = "kernelswap.devices"
DEFAULT_CACHE_BYTES = 1 << 30

Replay = Callable[[], Any]
Capture = Callable[[Replay], Replay]
"""Records a function that returns a tensor, and returns its replay."""


class Device:
    """One device. A subclass is a kind: in the tree (``DEVICES``), or of a package whose entry point in the group
    ``kernelswap.devices`` gives the kind's name and the subclass. What is not overridden is a device like the CPU: it computes when
    it is called.

    priority         ``device=auto`` takes the highest of the kinds that are here
    in_flight_steps  steps to have submitted unless the config says; more than 1 where a launch returns at once
    graph_sizes      rows of the decode steps to record unless the config says; few where each takes time and memory at start
    torch            the device by torch's name: where tensors are
    """

    priority: ClassVar[int] = 0
    in_flight_steps: ClassVar[int] = 1
    graph_sizes: ClassVar[tuple[int, ...]] = (
        1,
        2,
        4,
        *range(8, 32, 8),
        *range(32, 64, 16),
        *range(64, 128, 32),
        *range(128, 257, 64),
    )
    torch: torch.device

    def __init__(self, index: int | None = None) -> None:
        """index: which of the ``count()`` devices; None = the current one."""
        raise NotImplementedError

    @classmethod
    def count(cls) -> int:
        """How many there are on this machine."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The product, as result rows say it."""
        return self.torch.type

    @property
    def arch(self) -> str:
        """The architecture that kernels are chosen by ("cpu", "sm_90", "gfx942")."""
        return device_arch(self.torch)

    def activate(self) -> None:
        """Makes it the device that this process launches on."""

    def memory(self) -> Memory | None:
        """None if it cannot be known."""
        return None

    def cache_bytes(self, largest_step: Callable[[], None], fraction: float) -> int:
        """How much memory the KV cache may take unless the config says. The weights are loaded, ``largest_step`` computes a step of
        the largest size; weights, activations and cache together may take ``fraction`` of the device."""
        return DEFAULT_CACHE_BYTES

    most_padding: float | None = None
    """Tokens that a replay computes for nothing, per token of the step, above which running every kernel is faster. None: no number
    is, because tokens more cost next to nothing."""

    def query_lens(self, num_drafts: int) -> list[int]:
        """Tokens per row of the decode steps to record, where up to ``num_drafts`` drafts of a row are checked; a row with fewer
        computes some before them again."""
        return sorted({1, 1 + num_drafts})

    def capture(self) -> Capture | None:
        """What records decode steps, so that the host replays them; None if the device cannot."""
        return None


class Cpu(Device):
    """The processor."""

    graph_sizes = (*range(1, 65), *range(72, 257, 8))  # recorded when they come; and a row of padding costs what any row does
    most_padding = 1.0

    def __init__(self, index: int | None = None) -> None:
        self.torch = torch.device("cpu")

    @classmethod
    def count(cls) -> int:
        return 1

    def memory(self) -> Memory | None:
        return host_memory()

    def query_lens(self, num_drafts: int) -> list[int]:
        """Recorded when they come."""
        return list(range(1, 2 + num_drafts))

    def capture(self) -> Capture:
        arena = Arena()

        def capture(run: Replay) -> Replay:
            """Nothing runs before the first replay, which records: it computes as well as any later one."""
            recording: Recording | None = None

            def replay() -> Any:
                nonlocal recording
                if recording is not None:
                    return recording.replay()
                recording = record(run, arena)
                return recording.output

            return replay

        return capture


class Cuda(Device):
    """A GPU, by CUDA or ROCm (which torch calls cuda, too)."""

    priority = 10
    in_flight_steps = 2

    def __init__(self, index: int | None = None) -> None:
        self.torch = torch.device("cuda") if index is None else torch.device("cuda", index)

    @classmethod
    def count(cls) -> int:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.torch)

    def activate(self) -> None:
        if self.torch.index is not None:
            torch.cuda.set_device(self.torch)  # streams, graphs and Triton's launches belong to the current device

    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self.torch)
        kept = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)  # by torch, for reuse
        return Memory(free + kept, total)

    @torch.inference_mode()
    def cache_bytes(self, largest_step: Callable[[], None], fraction: float) -> int:
        """What the largest step leaves free."""
        torch.cuda.reset_peak_memory_stats(self.torch)
        largest_step()
        torch.cuda.synchronize(self.torch)
        activations = torch.cuda.max_memory_allocated(self.torch) - torch.cuda.memory_allocated(self.torch)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.torch)
        return cache_budget(free, total, activations, fraction)

    def capture(self) -> Capture:
        return _CudaGraphs()


class _CudaGraphs:
    """Records functions as CUDA (or HIP) graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()  # one for all: the allocator keeps what was freed for its stream

    def __call__(self, run: Replay) -> Replay:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):  # compiles kernels and allocates workspaces before recording
            run()
        torch.cuda.current_stream().wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def graph_sizes(config: EngineConfig, device: type[Device]) -> list[int]:
    """Rows of the decode steps to record, of which no step has more than there are seats."""
    largest = config.scheduler.max_num_seqs
    wanted = device.graph_sizes if config.graphs.batch_sizes is None else config.graphs.batch_sizes
    return [size for size in wanted if size <= largest] or [largest]


DEVICES: dict[str, type[Device]] = {"cpu": Cpu, "cuda": Cuda}
"""The kinds in the tree."""


def open_device(name: str, first: int = 0) -> Device:
    """The device of that name: a kind, ``kind:index``, or ``auto``, the best kind that is here. first: where the name has no index,
    that of the device to take, counted around. Raises ValueError for one that is not here."""
    plugins = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name == "auto":
        kinds = [*DEVICES.values(), *(kind for entry in plugins.values() if (kind := _load_or_warn(entry)) is not None)]
        kind = max((kind for kind in kinds if kind.count()), key=lambda kind: kind.priority)
        return kind(first % kind.count() or None)
    kind_name, _, index = name.partition(":")
    if kind_name in DEVICES:
        kind = DEVICES[kind_name]
    elif kind_name in plugins:
        kind = _load(plugins[kind_name])
    else:
        raise ValueError(
            f"device={name}: there is no such kind of device; there are {', '.join([*DEVICES, *sorted(plugins)])}. Another comes "
            f"from an installed package with an entry point named {kind_name!r} in the group {ENTRY_POINT_GROUP}"
        )
    count = kind.count()
    if count == 0:
        raise ValueError(f"device={name} was asked for, but torch {torch.__version__} finds none here; use device=cpu or auto")
    if index and not (index.isdecimal() and int(index) < count):
        raise ValueError(f"device={name} was asked for, but of {kind_name} there are {count} here, counted from 0")
    return kind(int(index) if index else first % count or None)


def _load(entry: EntryPoint) -> type[Device]:
    try:
        return entry.load()
    except Exception as error:
        raise ValueError(
            f"device={entry.name} comes from {entry.value}, which could not be loaded: {type(error).__name__}: {error}"
        ) from error


def _load_or_warn(entry: EntryPoint) -> type[Device] | None:
    """A broken package harms only those who ask for its device."""
    try:
        return _load(entry)
    except ValueError as error:
        warnings.warn(f"device=auto passes over a kind: {error}", stacklevel=3)
        return None
