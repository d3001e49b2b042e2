"""Where weights come from: a safetensors checkpoint, read tensor by tensor, or a seeded generator."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from .families import Family
from .parts import Part


class Weights(Protocol):
    """A source of a model's tensors, on the device and in the dtype of the model."""

    def load(self, part: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (``part.shape``) and bias of a part, fresh tensors that belong to the caller."""


class DummyWeights:
    """Random weights that depend on the seed and the part's name only. Norms are 1, biases 0."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int, norm_offset: float) -> None:
        self._device, self._dtype, self._seed, self._norm_offset = device, dtype, seed, norm_offset

    def load(self, part: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = torch.zeros(sum(part.rows), dtype=self._dtype, device=self._device) if part.bias else None
        if part.columns is None:
            return torch.full(part.shape, 1.0 - self._norm_offset, dtype=self._dtype, device=self._device), bias
        digest = hashlib.sha256(f"{self._seed}/{part.sources[0]}".encode()).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(digest[:7], "little"))
        weight = torch.empty(part.shape, dtype=self._dtype, device=self._device)
        return weight.normal_(std=part.columns**-0.5, generator=generator), bias


class Checkpoint:
    """A folder of safetensors files, one or sharded with an index. Names are those of the family table, see ``Family``."""

    def __init__(self, folder: Path, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype, self._folder = device, dtype, folder
        self._files: dict[str, Any] = {}
        self._where = {_our_name(name, family): (file, name) for name, file in _index(folder).items()}

    def check(self, parts: Iterable[Part], ignored: Iterable[str]) -> None:
        """Every tensor of ``parts`` is there, and nothing else. Raises ValueError listing what is not so."""
        wanted = set()
        for part in parts:
            for name, *_ in part.tensors():
                wanted.add(name)
                if part.bias:
                    wanted.add(name.removesuffix("weight") + "bias")
        missing = sorted(wanted - set(self._where))
        unknown = sorted(n for n in set(self._where) - wanted if not any(re.search(p, n) for p in ignored))
        if missing or unknown:
            raise ValueError(
                f"the checkpoint in {self._folder} does not fit its config.json: missing tensors: {_some(missing)}; "
                f"tensors without a place in the model: {_some(unknown)}"
            )

    def load(self, part: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = torch.empty(part.shape, dtype=self._dtype, device=self._device)
        bias = torch.empty(sum(part.rows), dtype=self._dtype, device=self._device) if part.bias else None
        for name, expert, shard, shape in part.tensors():
            rows = slice(sum(part.rows[:shard]), sum(part.rows[: shard + 1]))
            target = weight[expert] if part.num_experts else weight
            _place(target[rows], self._read(name, shape), part)
            if bias is not None:
                _place(bias[rows], self._read(name.removesuffix("weight") + "bias", (part.rows[shard],)), part)
        return weight, bias

    def close(self) -> None:
        """Closes the files."""
        self._files.clear()

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        from safetensors import safe_open

        file, stored_name = self._where[name]
        if file not in self._files:
            self._files[file] = safe_open(self._folder / file, framework="pt", device="cpu")
        tensor = self._files[file].get_tensor(stored_name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{file}: tensor {stored_name} has shape {tuple(tensor.shape)}, but config.json asks for {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: tensor {stored_name} is {tensor.dtype}; this version reads no quantized checkpoints")
        return tensor


def _place(target: torch.Tensor, tensor: torch.Tensor, part: Part) -> None:
    """Copies a tensor as it lies on disk into its rows of the stacked one."""
    if part.layout == "transposed" and tensor.dim() == 2:
        tensor = tensor.T
    elif part.layout == "interleaved":
        heads = tensor.unflatten(0, (-1, 3, part.head_dim))
        tensor = heads.transpose(0, 1).flatten(0, 2)
    target.copy_(tensor)


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> file."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    single = folder / "model.safetensors"  # beside it there may be the same weights in another layout
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} has no *.safetensors files (other formats are not read); convert the checkpoint with "
            "save_pretrained of transformers, or use model.load_format=dummy"
        )
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as opened:
            found.update(dict.fromkeys(opened.keys(), path.name))
    return found


def _our_name(name: str, family: Family) -> str:
    for theirs, ours in family.renames:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    modules = (family.embed, family.layers, family.final_norm, family.position_embed)
    bare_model = name.startswith(tuple(f"{module}." for module in modules if module))
    return family.base + name if bare_model else name


def _some(names: list[str], limit: int = 20) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + rest) or "none"
