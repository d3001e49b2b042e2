"""What the schemes of quantized checkpoints share: a format per module, and modules that become one GEMM where they can."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

from ..parts import Part, bias_name
from .canonical import SYMMETRIC_ZERO, dequantized, float_bytes
from .experts import stack_experts
from .packing import concatenated
from .scheme import Format, LoadedPart, Module, TensorSource, WholeNeeded, one_input, same
from .unquantized import float_experts, float_linear

Tensors = Mapping[str, torch.Tensor | None]
_ROWS = ("qweight", "weight", "scales", "zeros")
"""Bound arguments of a GEMM whose first dimension counts outputs."""


class ModuleScheme(ABC):
    """A scheme in which each module of the model has a format of its own, or is stored as floats."""

    @abstractmethod
    def format_of(self, module: str) -> Format | None:
        """How the module of that name lies in the checkpoint; None: as floats."""

    def names(self, part: Part, source: TensorSource) -> Iterator[str]:
        for name, *_ in part.tensors():
            module = name.removesuffix(".weight")
            found = self._format(module, source)
            if found is None:
                yield name
            elif part.is_packed:
                raise ValueError(f"{name} holds all experts of a layer, which this kind of quantization keeps one by one")
            else:
                yield from found.names(module, source)
            if part.bias or (found is not None and source.holds(bias_name(name))):
                yield bias_name(name)

    def linear(self, part: Part, source: TensorSource) -> tuple[LoadedPart, ...]:
        formats = [self._format(module, source) for module in part.sources]
        if not any(formats):
            return (float_linear(source.weight(part), source.bias(part)),)
        if any(found is not None and source.holds(f"{module}.bias") for module, found in zip(part.sources, formats)):
            part = _with_bias(part)  # tools write one, of zeros, for layers that have none
        bias = source.bias(part)
        if part.layout == "interleaved":
            assert len(formats) == 1, "a fused projection is one module"
        loaded = [self._load(module, part, source) for module in _modules(part)]
        return stack([_in_order(one, part) for one in loaded], bias)

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        modules = [name.removesuffix(".weight") for part in (w13, w2) for name, *_ in part.tensors()]
        if not any(self._format(module, source) for module in modules):
            return float_experts(source.weight(w13), source.weight(w2))
        gate_up, down = (
            [
                [self._load(replace(module, name=module.name.format(e=expert)), part, source) for module in _modules(part)]
                for expert in (range(part.num_experts) if part.share is None else part.own[2])
            ]
            for part in (w13, w2)
        )
        return stack_experts(gate_up, down, source.dtype)

    def num_bytes(self, part: Part, dtype: torch.dtype) -> float:
        assert part.columns is not None
        if part.is_packed:  # floats: see ``names``
            return math.prod(part.shape) * dtype.itemsize
        total = 0.0
        for name, _, shard, _ in part.tensors():
            module = Module(name.removesuffix(".weight"), part.rows[shard], part.columns)
            found = self.format_of(module.name)
            total += float_bytes(module, dtype) if found is None else found.num_bytes(module, dtype, expert=part.num_experts > 0)
        return total

    def _load(self, module: Module, part: Part, source: TensorSource) -> LoadedPart:
        """One module of a part, without its bias."""
        found = self._format(module.name, source)
        if module.share is not None and (found is None or not found.sliced):
            raise WholeNeeded
        if found is None:
            alone = replace(part, sources=(module.name,), rows=(module.rows,), num_experts=0, share=None)
            return float_linear(source.weight(alone), None)
        return found.load(module, source)

    def _format(self, module: str, source: TensorSource) -> Format | None:
        """What the config says, unless the checkpoint has the module's weight as floats in place of what it says."""
        found = self.format_of(module)
        if found is None or not source.holds(f"{module}.weight"):
            return found
        return found if all(map(source.holds, found.names(module, source))) else None


def _with_bias(part: Part) -> Part:
    if part.share is None:
        return replace(part, bias=True)
    whole, rank = part.share
    return replace(part, bias=True, share=(replace(whole, bias=True), rank))


def _modules(part: Part) -> list[Module]:
    """Of a part, or of one of its experts. Raises WholeNeeded for a share that is not a few ranges of rows of each."""
    assert part.columns is not None
    if part.share is None:
        return [Module(name, rows, part.columns) for name, rows in zip(part.sources, part.rows)]
    (ranges, columns, _), whole = part.own, part.share[0]
    if part.layout == "interleaved" or sum(map(len, ranges)) < sum(part.rows):
        raise WholeNeeded
    modules, start = [], 0
    for name, rows in zip(whole.sources, whole.rows):
        own = (range(max(each.start - start, 0), min(each.stop - start, rows)) for each in ranges)
        within = tuple(each for each in own if each)
        start += rows
        shape = (rows, whole.columns or 0)
        if not within:
            raise WholeNeeded
        module = Module(name, sum(map(len, within)), len(columns), (within, columns, shape))
        modules.append(replace(module, share=None) if module.shape == shape else module)
    return modules


def _in_order(loaded: LoadedPart, part: Part) -> LoadedPart:
    """Rows of a fused projection that lie head by head on disk become q of all heads, k, v."""
    if part.layout != "interleaved":
        return loaded
    order = torch.tensor(part.rows_on_disk)
    if loaded.input is not None and loaded.input.params["granularity"] == "group":
        dtype = loaded.params["out_dtype"]
        weight = dequantized(loaded).to(dtype)
        note = f"rows that lie head by head leave their blocks of scales: they were dequantized to {dtype}"
        return replace(float_linear(weight[order.to(weight.device)], None), note=note)
    tensors = dict(loaded.tensors)
    for name in _ROWS:
        tensor = tensors.get(name)
        if tensor is not None and not (name == "scales" and len(tensor) == 1):
            tensors[name] = tensor[order.to(tensor.device)]
    return replace(loaded, tensors=tensors)


def stack(parts: Sequence[LoadedPart], bias: torch.Tensor | None) -> tuple[LoadedPart, ...]:
    """Neighbours that one op can compute together become one part; nothing is rounded. bias [all rows] or None."""
    stacked: list[LoadedPart] = []
    for part in map(_as_channels, parts):
        joined = _joined(stacked[-1], part) if stacked else None
        if joined is None:
            stacked.append(part)
        else:
            stacked[-1] = joined
    if bias is None:
        return tuple(stacked)
    biases = bias.split([part.num_rows for part in stacked])
    return tuple(replace(part, tensors={**part.tensors, "bias": rows.contiguous()}) for part, rows in zip(stacked, biases))


def _as_channels(part: LoadedPart) -> LoadedPart:
    """Blocks of 128 rows and all columns, which ``gemm_fp8`` knows as rows with scales of their own."""
    scales = part.tensors.get("scales")
    if part.op != "gemm_fp8" or part.input is None or part.input.params["granularity"] != "group":
        return part
    if scales is None or scales.shape[1] > 1:
        return part
    by_row = scales.repeat_interleave(FP8_BLOCK, 0)[: part.num_rows]
    params = {**part.input.params, "granularity": "token"}
    return replace(part, tensors={**part.tensors, "scales": by_row}, input=replace(part.input, params=params))


def _joined(first: LoadedPart, second: LoadedPart) -> LoadedPart | None:
    """One part for the rows of both; None if one op cannot compute them with the same numbers."""
    if first.op != second.op or first.params != second.params or not one_input((first, second)):
        return None
    a, b = _with_scales_by_row(first, second), _with_scales_by_row(second, first)
    if first.op == "gemm_w4a16":
        a, b = _with_zeros(a, b), _with_zeros(b, a)
    if not same(a.get("perm"), b.get("perm")):
        return None
    tensors: dict[str, torch.Tensor | None] = {**a, "bias": None}
    for name in _ROWS:
        x, y = a.get(name), b.get(name)
        if x is None or y is None:
            if x is not y:
                return None
        elif x.dtype != y.dtype or x.shape[1:] != y.shape[1:]:
            return None
        elif x.shape != (1, 1):  # a scale of all rows of both
            tensors[name] = concatenated((x, y))
    scales = tensors.get("scales")
    if first.op == "gemm_fp8" and scales is not None and scales.shape[1] > 1 and first.num_rows % FP8_BLOCK:
        return None  # the second would begin in the middle of a block
    return replace(first, tensors=tensors)


def _with_scales_by_row(part: LoadedPart, other: LoadedPart) -> Tensors:
    """A scale for all rows becomes one per row, unless both parts have the same."""
    scales, others = part.tensors.get("scales"), other.tensors.get("scales")
    if scales is None or scales.shape != (1, 1) or same(scales, others):
        return part.tensors
    return {**part.tensors, "scales": scales.expand(part.num_rows, 1)}


def _with_zeros(tensors: Tensors, others: Tensors) -> Tensors:
    """4-bit weights get zero points of their own where the others have some."""
    scales = tensors["scales"]
    assert scales is not None
    if tensors["zeros"] is not None or others["zeros"] is None:
        return tensors
    return {**tensors, "zeros": torch.full(scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=scales.device)}
