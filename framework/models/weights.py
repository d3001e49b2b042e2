"""Where weights come from: a checkpoint, read tensor by tensor, a seeded generator, or nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from .architecture import Architecture
from .families import Family
from .parts import Part, all_parts, bias_name, model_parts
from .quantization.modules import ModuleScheme
from .quantization.scheme import WIDE_FLOATS, LoadedPart, Scheme, WholeNeeded
from .quantization.shares import own_bias, own_experts, own_linear, own_weight
from .quantization.unquantized import Unquantized, gate_first
from .tensor_files import TensorFiles, tensor_files

_COMPARED_ROWS = 4096
"""Of two tables, at a time: both may be as large as the memory that is left."""


class Weights(ABC):
    """A source of a model's tensors, fresh ones that belong to the caller, and the scheme that stored them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, scheme: Scheme) -> None:
        self.device, self.dtype, self.scheme = device, dtype, scheme

    def load(self, part: Part) -> tuple[LoadedPart, ...]:
        """A linear layer, in one part or several for some rows each."""
        if part.share is None or type(self.scheme) is Unquantized:
            return self.scheme.linear(part, self)
        with contextlib.suppress(WholeNeeded):
            if isinstance(self.scheme, ModuleScheme):
                return self.scheme.linear(part, self)
        return own_linear(self.scheme.linear(part.share[0], self), part)  # what shares a scale may be in no rank's share alone

    def load_experts(self, w13: Part, w2: Part) -> LoadedPart:
        """The experts of a layer, biases included."""
        loaded = self._own_experts(w13, w2)
        biases = {f"{name}_bias": self.bias(part) for name, part in (("w13", w13), ("w2", w2)) if part.bias}
        if w2.share is not None and w2.share[1].rank and w2.columns != w2.share[0].columns and w2.bias:
            biases["w2_bias"] = None  # ranks that share an expert's inputs add it once
        return replace(loaded, tensors={**loaded.tensors, **biases})

    def _own_experts(self, w13: Part, w2: Part) -> LoadedPart:
        if w13.share is None or w2.share is None or type(self.scheme) is Unquantized:
            return self.scheme.experts(w13, w2, self)
        with contextlib.suppress(WholeNeeded):
            if isinstance(self.scheme, ModuleScheme):
                return self.scheme.experts(w13, w2, self)
        return own_experts(self.scheme.experts(w13.share[0], w2.share[0], self), w13, w2)

    def empty(self, part: Part) -> torch.Tensor:
        """A tensor for the weight."""
        return torch.empty(part.shape, dtype=torch.float32 if part.float32 else self.dtype, device=self.device)

    def weight(self, part: Part) -> torch.Tensor:
        """As ``TensorSource.weight``; of a rank's share, that."""
        return self._whole_weight(part) if part.share is None else self._own_weight(part)

    def bias(self, part: Part) -> torch.Tensor | None:
        """As ``TensorSource.bias``; of a rank's share, that."""
        if part.share is None:
            return self._whole_bias(part)
        whole = self._whole_bias(part.share[0])
        return None if whole is None else own_bias(whole, part)

    @abstractmethod
    def _whole_weight(self, part: Part) -> torch.Tensor:
        """Of a part that is no share."""

    @abstractmethod
    def _whole_bias(self, part: Part) -> torch.Tensor | None:
        """Of a part that is no share."""

    def _own_weight(self, part: Part) -> torch.Tensor:
        """A rank's share."""
        assert part.share is not None
        return own_weight(self._whole_weight(part.share[0]), part)

    def holds(self, name: str) -> bool:
        """As ``TensorSource.holds``. Without a checkpoint: nothing that a format may, but need not have."""
        return False

    def shape(self, name: str) -> tuple[int, ...]:
        """As ``TensorSource.shape``. Without a checkpoint: a single number, where nobody asks for more."""
        return (1,)

    @abstractmethod
    def stored(
        self, name: str, shape: tuple[int, ...] | None, *dtypes: torch.dtype, index: tuple[slice, ...] | None = None
    ) -> torch.Tensor:
        """As ``TensorSource.stored``."""


def weight_bytes(a: Architecture, scheme: Scheme, dtype: torch.dtype, max_len: int) -> float:
    """What a model's weights take once they are loaded, as far as their format says (``Scheme.num_bytes``), with the tables of
    angles of ``max_len`` positions."""
    ropes = {layer.rope for layer in a.layers if layer.rope is not None}
    return parts_bytes(all_parts(a), scheme, dtype) + sum(max_len * rope.rotary_dim * torch.float32.itemsize for rope in ropes)


def parts_bytes(parts: Iterable[Part], scheme: Scheme, dtype: torch.dtype) -> float:
    """What some of the parts take."""
    total = 0.0
    for part in parts:
        element = torch.float32.itemsize if part.float32 else dtype.itemsize
        total += math.prod(part.shape) * element if part.always_float else scheme.num_bytes(part, dtype)
        total += math.prod(part.bias_shape) * dtype.itemsize if part.bias else 0
    return total


class EmptyWeights(Weights):
    """Tensors whose memory nobody touches, so that models larger than this machine fit."""

    def _whole_weight(self, part: Part) -> torch.Tensor:
        return self.empty(part)

    def _whole_bias(self, part: Part) -> torch.Tensor | None:
        return torch.empty(part.bias_shape, dtype=self.dtype, device=self.device) if part.bias else None

    def stored(
        self, name: str, shape: tuple[int, ...] | None, *dtypes: torch.dtype, index: tuple[slice, ...] | None = None
    ) -> torch.Tensor:
        return torch.zeros(shape or (1,), dtype=dtypes[0], device=self.device)[index or ()]


class DummyWeights(Weights):
    """Random weights that depend on the seed and the part's name only. Norms are 1, biases 0."""

    def __init__(self, device: torch.device, dtype: torch.dtype, scheme: Scheme, seed: int, norm_offset: float) -> None:
        super().__init__(device, dtype, scheme)
        self._seed, self._norm_offset = seed, norm_offset

    def _whole_weight(self, part: Part) -> torch.Tensor:
        if part.columns is None:
            offset = 0.0 if part.float32 else self._norm_offset
            return self.empty(part).fill_(0.0 if part.tensor == "bias" else 1.0 - offset)
        return self.empty(part).normal_(std=part.columns**-0.5, generator=self._generator(part.sources[0]))

    def _whole_bias(self, part: Part) -> torch.Tensor | None:
        return torch.zeros(part.bias_shape, dtype=self.dtype, device=self.device) if part.bias else None

    def stored(
        self, name: str, shape: tuple[int, ...] | None, *dtypes: torch.dtype, index: tuple[slice, ...] | None = None
    ) -> torch.Tensor:
        """Floats as those of ``weight``, integers over the whole range of their dtype."""
        shape, dtype, generator = shape or (1,), dtypes[0], self._generator(name)
        if dtype.is_floating_point:
            values = torch.empty(shape, device=self.device).normal_(std=shape[-1] ** -0.5, generator=generator)
            return values.to(dtype)[index or ()]
        kind = torch.iinfo(dtype)
        return torch.randint(kind.min, kind.max + 1, shape, generator=generator, dtype=dtype, device=self.device)[index or ()]

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7], "little"))


class Checkpoint(Weights):
    """A folder of safetensors files, or of torch.save's where it has none, one or sharded with an index. Names are those of
    the family table, see ``Family``."""

    def __init__(self, folder: Path, family: Family, device: torch.device, dtype: torch.dtype, scheme: Scheme) -> None:
        super().__init__(device, dtype, scheme)
        where: dict[str, tuple[str, str]] = {}
        for name, file in tensor_files(folder).items():
            ours = our_name(name, family)
            if ours in where:
                raise ValueError(f"the checkpoint in {folder} has the tensor {ours} twice: as {where[ours][1]} and as {name}")
            where[ours] = file, name
        self.files = TensorFiles(folder, where)

    def check(self, parts: Iterable[Part], ignored: Iterable[str]) -> None:
        """Every tensor of ``parts`` is there, and nothing else. Raises ValueError listing what is not so."""
        wanted = {name for part in parts for name in (part.float_names() if part.always_float else self.scheme.names(part, self))}
        missing = sorted(wanted - set(self.files.where))
        unknown = sorted(n for n in set(self.files.where) - wanted if not any(re.search(p, n) for p in ignored))
        if missing or unknown:
            raise ValueError(
                f"the checkpoint in {self.files.folder} does not fit its config.json: missing tensors: {_some(missing)}; "
                f"tensors without a place in the model: {_some(unknown)}"
            )

    def check_tied(self, a: Architecture) -> None:
        """Of a model that computes logits from its embeddings: there are no other weights for them, or the same ones once more, as
        files of torch.save have them. Raises ValueError otherwise."""
        logits = f"{a.family.lm_head}.weight"
        if not self.holds(logits):
            return
        embed, *_, shape = next(model_parts(a)["embed"].tensors())
        for start in range(0, a.vocab_size, _COMPARED_ROWS):
            rows = (slice(start, min(start + _COMPARED_ROWS, a.vocab_size)),)
            table = self.files.read_float(embed, shape, rows).to(self.dtype)
            if self.shape(logits) != shape or not torch.equal(table, self.files.read_float(logits, shape, rows).to(self.dtype)):
                stored = self.files.where[logits][1]
                raise ValueError(
                    f"the checkpoint in {self.files.folder} has {stored}, which differs from {embed}, but its config.json (or "
                    f"model.architecture) has tie_word_embeddings=true, with which {stored} would not be read: set "
                    f"tie_word_embeddings=false there, or, if logits are to come from the embeddings, delete {stored}"
                )

    def _whole_weight(self, part: Part) -> torch.Tensor:
        weight = self.empty(part)
        for name, expert, shard, shape in part.tensors():
            if part.is_packed:
                _place_packed(weight[:, _rows(part, shard)], self.files.read_float(name, shape), part)
                continue
            stacked = weight[expert] if part.num_experts else weight
            _place(stacked[_rows(part, shard)], self.files.read_float(name, shape), part)
        return weight

    def _whole_bias(self, part: Part) -> torch.Tensor | None:
        if not part.bias:
            return None
        bias = torch.empty(part.bias_shape, dtype=self.dtype, device=self.device)
        for name, expert, shard, _ in part.tensors():
            rows = part.rows[shard]
            if shard in part.unbiased:
                bias[_rows(part, shard)] = 0
                continue
            if part.is_packed:
                tensor = self.files.read_float(bias_name(name), (part.num_experts, rows))
                bias[:, _rows(part, shard)] = gate_first(tensor) if part.alternating else tensor
                continue
            stacked = bias[expert] if part.num_experts else bias
            _place(stacked[_rows(part, shard)], self.files.read_float(bias_name(name), (rows,)), part)
        return bias

    def _own_weight(self, part: Part) -> torch.Tensor:
        """Reads no more of the files than that, where a share is a few ranges of what lies there."""
        assert part.share is not None
        whole, _ = part.share
        if whole.is_packed or whole.layout == "interleaved":
            return super()._own_weight(part)
        (ranges, columns, experts), weight = part.own, self.empty(part)
        if sum(map(len, ranges)) < sum(part.rows):
            weight.zero_()
        for name, expert, shard, shape in whole.tensors():
            slots = [weight[slot] for slot, held in enumerate(experts) if held == expert] if whole.num_experts else [weight]
            if not slots:
                continue
            source, row = _rows(whole, shard), 0
            for own, count in zip(ranges, part.pieces or part.rows):
                first, stop = max(own.start, source.start), min(own.stop, source.stop)
                if first < stop:
                    wanted = slice(first - source.start, stop - source.start)
                    index = (wanted,) if whole.columns is None else (wanted, slice(columns.start, columns.stop))
                    begin = row + first - own.start
                    found = self.files.read_float(name, shape, index[::-1] if whole.layout == "transposed" else index)
                    for stacked in slots:
                        _place(stacked[begin : begin + stop - first], found, whole)
                row += count
        return weight

    def holds(self, name: str) -> bool:
        return name in self.files.where

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files.shape(name)

    def stored(
        self, name: str, shape: tuple[int, ...] | None, *dtypes: torch.dtype, index: tuple[slice, ...] | None = None
    ) -> torch.Tensor:
        tensor = self.files.read(name, shape, index)
        file, stored_name = self.files.where[name]
        if tensor.dtype in WIDE_FLOATS and not torch.isfinite(tensor).all():
            raise ValueError(f"{file}: tensor {stored_name} has values that are NaN or infinite: quantize the model again")
        if tensor.dtype in dtypes:
            return tensor.to(self.device)
        if tensor.dtype in WIDE_FLOATS and dtypes[0] in WIDE_FLOATS:
            return tensor.to(self.device, dtypes[0])
        raise ValueError(f"{file}: tensor {stored_name} is {tensor.dtype}, but its format asks for {' or '.join(map(str, dtypes))}")

    def close(self) -> None:
        """Closes the files."""
        self.files.close()


def _rows(part: Part, shard: int) -> slice:
    """The rows of a shard in the stacked part."""
    start = sum(part.rows[:shard])
    return slice(start, start + part.rows[shard])


def _place(target: torch.Tensor, tensor: torch.Tensor, part: Part) -> None:
    """Copies a tensor as it lies on disk into its rows of the stacked one."""
    if part.layout == "transposed" and tensor.dim() == 2:
        tensor = tensor.T
    elif part.layout == "interleaved":
        tensor = tensor[part.rows_on_disk]
    elif part.layout == "filters" and tensor.dim() == 3:
        tensor = tensor.squeeze(1)
    target.copy_(tensor)


def _place_packed(target: torch.Tensor, tensor: torch.Tensor, part: Part) -> None:
    """The same for matrices of all experts, target [E, rows, columns]."""
    if part.layout.startswith("flat"):
        tensor = tensor.unflatten(0, (part.num_experts, -1))
    if part.layout.endswith("transposed"):
        tensor = tensor.mT
    target.copy_(gate_first(tensor) if part.alternating else tensor)


def our_name(name: str, family: Family) -> str:
    for theirs, ours in family.renames:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # as the first checkpoints of BERT have them
    modules = (family.embed, family.embed_norm, family.layers, family.final_norm, family.position_embed, family.token_types)
    bare_model = name.startswith(tuple(f"{module}." for module in modules if module))
    return family.base + name if bare_model else name


def _some(names: list[str], limit: int = 20) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + rest) or "none"
