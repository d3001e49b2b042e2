"""The places on a device that adapters are computed from."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...config import LoraConfig
from ...plan import BoundKernel, KernelPlan, LoraMeta
from ..architecture import Architecture
from ..layers.linear import Linear, bind_reduce
from ..parallel import Parallel
from ..parts import Part
from ..quantization.shares import own_bias
from ..ranks import rank_architecture
from .adapter import Adapter, Slice, adaptable_parts
from .layers import AdaptedEmbedding, AdaptedLinear, LoraStep


@dataclass(frozen=True)
class _Staged:
    """A rank's share of an adapter of one part, as ``PartSlots.write`` takes it: of slices of lower ranks the rest is zeros.

    a      [n, r, K], of an embedding [V, r]
    b      [r, N]
    scale  float32 [n, r]
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes + self.scale.nbytes


class PartSlots:
    """The slots of one part, of n slices (``part.sources``), with zeros where there is no adapter.

    a      [slots, n * max_rank, K], of an embedding [slots, V, max_rank]
    b      [slots, max_rank, N]
    scale  float32 [slots, n * max_rank]
    """

    def __init__(self, part: Part, num_slots: int, max_rank: int, dtype: torch.dtype, device: torch.device, is_table: bool) -> None:
        """part: a rank's own. is_table: its columns of A are looked up."""
        self.part, self.num_slices, self.is_table = part, len(part.sources), is_table
        a, b, scale = _shapes(part, is_table, max_rank)
        self.a = torch.zeros(num_slots, *a, dtype=dtype, device=device)
        self.b = torch.zeros(num_slots, *b, dtype=dtype, device=device)
        self.scale = torch.zeros(num_slots, *scale, dtype=torch.float32, device=device)
        self._used = [False] * num_slots

    def stage(self, slices: Sequence[Slice | None]) -> _Staged:
        """This rank's share of an adapter, on the host."""
        rank, dtype = max(len(one.scale) for one in slices if one is not None), self.a.dtype
        if self.is_table:
            [one] = slices
            assert one is not None
            table = one.a.T if self.part.share is None else own_bias(one.a.T.contiguous(), self.part)
            return self._pinned(table.to(dtype), one.b.T.to(dtype), one.scale[None].float())
        whole = self.part if self.part.share is None else self.part.share[0]
        a = torch.zeros(self.num_slices, rank, whole.columns or 0, dtype=dtype)
        b, scale = torch.zeros(sum(whole.rows), rank, dtype=dtype), torch.zeros(self.num_slices, rank)
        for nth, (one, rows) in enumerate(zip(slices, b.split(whole.rows), strict=True)):
            if one is not None:
                own = len(one.scale)
                a[nth, :own], rows[:, :own], scale[nth, :own] = one.a, one.b, one.scale
        if self.part.share is not None:
            columns = self.part.own[1]
            a, b = a[..., columns.start : columns.stop], own_bias(b, self.part)
        return self._pinned(a, b.T, scale)

    def write(self, slot: int, staged: _Staged | None) -> None:
        """Puts an adapter into a slot, behind what is queued on the device; None: one that leaves this part as it is."""
        if staged is None:
            if self._used[slot]:
                for tensor in (self.a, self.b, self.scale):
                    tensor[slot].zero_()
            self._used[slot] = False
            return
        self._used[slot] = True
        rank = staged.b.shape[0]
        if self.is_table:
            _fill(self.a[slot], staged.a, rank, dim=1)
        else:
            _fill(self.a[slot].unflatten(0, (self.num_slices, -1)), staged.a, rank, dim=1)
        _fill(self.b[slot], staged.b, rank, dim=0)
        _fill(self.scale[slot].unflatten(0, (self.num_slices, -1)), staged.scale, rank, dim=1)

    def _pinned(self, *tensors: torch.Tensor) -> _Staged:
        on_host = [tensor.contiguous() for tensor in tensors]
        return _Staged(*(on_host if self.a.is_cpu else (tensor.pin_memory() for tensor in on_host)))


class LoraSlots:
    """Adapters of a model: which parts of this rank have them, what the device holds at the moment, and what waits on the host.

    num_slots  adapters that rows of one step can have between them
    step       what the adapted layers look at
    """

    def __init__(self, architecture: Architecture, config: LoraConfig, plan: KernelPlan, dtype: torch.dtype, device: torch.device):
        """architecture: the whole model's; dtype: the model's."""
        self.num_slots, self.max_rank, self.step = config.max_loras, config.max_rank, LoraStep()
        self._dtype, self._device, self._plan = lora_dtype(config, dtype), device, plan
        self._names = {part.sources: name for name, part in adaptable_parts(architecture, config.target_modules).items()}
        self._parts: dict[str, PartSlots] = {}
        self._waiting: dict[str, dict[str, _Staged]] = {}
        self._holds: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._kernels: dict[tuple[str, str], BoundKernel] = {}
        self._reduce: BoundKernel | None = None  # of all layers that sum over ranks

    def adapted(self, part: Part, linear: Linear, group: Any = None) -> Linear:
        """The linear layer with slots for adapters, if they may have this part. group: of ranks that share its inputs, whose
        outputs it sums; None: this rank has all."""
        slots = self._slots(part, is_table=False)
        if slots is None:
            return linear
        shrink = self._bind("lora_shrink", {"lora_a": slots.a, "scale": slots.scale}, {"partial": group is not None})
        if group is not None and self._reduce is None:
            self._reduce = bind_reduce(self._plan, group, torch.float32)
        expand = self._expand(slots, part.rows)
        return AdaptedLinear(linear, shrink, expand, self.step, None if group is None else self._reduce)

    def adapted_embedding(self, part: Part, embedding: BoundKernel, vocab_start: int) -> BoundKernel | AdaptedEmbedding:
        """The same of a table, or a rank's share of it."""
        slots = self._slots(part, is_table=True)
        if slots is None:
            return embedding
        expand = self._expand(slots, (part.columns or 0,))
        share = None if part.share is None else range(vocab_start, vocab_start + slots.a.shape[1])
        return AdaptedEmbedding(embedding, slots.a, slots.scale, expand, self.step, share)

    def begin_step(self, meta: LoraMeta) -> None:
        """Once per step: lets kernels prepare what all layers share."""
        for kernel in self._kernels.values():
            kernel.begin_step(meta)

    def add(self, adapter: Adapter) -> int:
        """Keeps this rank's share of an adapter on the host, ready to be loaded, until it is dropped as often as it was added, and
        returns its bytes. Takes time: no step waits for it, in a thread of its own."""
        staged = {name: slots.stage(adapter.parts[name]) for name, slots in self._parts.items() if name in adapter.parts}
        with self._lock:
            self._waiting[adapter.key] = staged
            self._holds[adapter.key] += 1
        return sum(one.num_bytes for one in staged.values())

    def drop(self, key: str) -> None:
        """Takes back one ``add``. Slots keep what they hold."""
        with self._lock:
            self._holds[key] -= 1
            if not self._holds[key]:
                del self._waiting[key], self._holds[key]

    @torch.inference_mode()
    def load(self, slot: int, key: str) -> None:
        """Puts an adapter that waits on the host into a slot; steps that were launched still have what was there."""
        staged = self._waiting[key]
        for name, slots in self._parts.items():
            slots.write(slot, staged.get(name))

    @property
    def num_bytes(self) -> int:
        """What the slots take on the device."""
        return sum(tensor.nbytes for slots in self._parts.values() for tensor in (slots.a, slots.b, slots.scale))

    def _slots(self, part: Part, is_table: bool) -> PartSlots | None:
        name = self._names.get(part.sources)
        if name is None:
            return None
        assert name not in self._parts, f"{name} was bound twice"
        self._parts[name] = PartSlots(part, self.num_slots, self.max_rank, self._dtype, self._device, is_table)
        return self._parts[name]

    def _expand(self, slots: PartSlots, slices: tuple[int, ...]) -> BoundKernel:
        return self._bind("lora_expand", {"lora_b": slots.b}, {"slices": slices})

    def _bind(self, op: str, weights: dict[str, torch.Tensor | None], params: dict[str, object] | None = None) -> BoundKernel:
        kernel = self._plan.bind(op, weights, params)
        self._kernels.setdefault((op, kernel.choice), kernel)
        return kernel


def lora_dtype(config: LoraConfig, model_dtype: torch.dtype) -> torch.dtype:
    """Of the adapters in the slots."""
    return model_dtype if config.dtype == "auto" else getattr(torch, config.dtype)


def rank_parts(architecture: Architecture, parallel: Parallel, config: LoraConfig) -> Iterator[tuple[str, Part]]:
    """Name and part of what a rank has slots for. architecture: the whole model's."""
    own = rank_architecture(architecture, parallel.sizes)
    layers, wanted = parallel.pp.part(len(architecture.layers)), adaptable_parts(architecture, config.target_modules)
    for name, part in adaptable_parts(own).items():
        outside = name in ("embed", "project_in") if layers.start == 0 else False
        outside |= name in ("lm_head", "project_out") and layers.stop == len(architecture.layers)
        if name in wanted and (int(name.split(".")[1]) in layers if name.startswith("layers.") else outside):
            yield name, part


def lora_bytes(parts: Iterable[tuple[str, Part]], config: LoraConfig, model_dtype: torch.dtype) -> int:
    """What the slots of these parts take. parts: a rank's own, with their names in ``adaptable_parts``."""
    total = 0
    for name, part in parts:
        a, b, scale = _shapes(part, name == "embed", config.max_rank)
        total += (math.prod(a) + math.prod(b)) * lora_dtype(config, model_dtype).itemsize + 4 * math.prod(scale)
    return config.max_loras * total


def _shapes(part: Part, is_table: bool, max_rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """a, b and scale of a slot."""
    rows, columns, ranks = sum(part.rows), part.columns or 0, len(part.sources) * max_rank
    return ((rows, max_rank), (max_rank, columns), (ranks,)) if is_table else ((ranks, columns), (max_rank, rows), (ranks,))


def _fill(target: torch.Tensor, values: torch.Tensor, rank: int, dim: int) -> None:
    """Values of a rank, and zeros behind them."""
    target.narrow(dim, 0, rank).copy_(values, non_blocking=True)
    target.narrow(dim, rank, target.shape[dim] - rank).zero_()
