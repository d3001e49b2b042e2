"""Reads adapters as peft's ``save_pretrained`` writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from ..families import Family
from ..hub import read_json
from ..parts import Part
from ..tensor_files import TensorFiles, open_shard, tensor_files
from ..weights import our_name
from .adapter import Adapter, Slice
from .peft_config import PeftConfig

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_LORA = re.compile(r"(?P<module>.+)\.(?:lora_|lora_embedding_)(?P<matrix>[AB])(?:\.default)?(?:\.weight)?")
_DORA = "lora_magnitude_vector"
_COPIES = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")
"""Of embeddings, which peft saves beside what adapts them."""


def read_adapter(
    folder: str | Path, parts: Mapping[str, Part], family: Family, max_rank: int, dtype: torch.dtype, base: Path | None = None
) -> Adapter:
    """parts: those that may be adapted, see ``adaptable_parts``; base: the folder of the model's checkpoint, None if it has none.
    Raises ValueError for an adapter that cannot be served as peft would, saying what was found and what would work."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise ValueError(f"the adapter {str(folder)!r} is no folder here: give the path that save_pretrained of peft wrote to")
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} has no adapter_config.json, so it is no adapter of peft: {_contents(folder)}")
    config = PeftConfig.of(read_json(folder, "adapter_config.json"), folder / "adapter_config.json")
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} has neither of {', '.join(WEIGHT_FILES)}: {_contents(folder)}")
    with open_shard(file) as opened:
        where = {name: (file.name, name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        tensors = TensorFiles(folder, where, {file.name: opened})
        return _Reading(folder, config, tensors, parts, family, max_rank, dtype, base).adapter()


@dataclass
class _Reading:
    folder: Path
    config: PeftConfig
    tensors: TensorFiles
    parts: Mapping[str, Part]
    family: Family
    max_rank: int
    dtype: torch.dtype
    base: Path | None

    def adapter(self) -> Adapter:
        places = {source: (name, i) for name, part in self.parts.items() for i, source in enumerate(part.sources)}
        found = self._pairs(places)
        slices: dict[str, list[Slice | None]] = {}
        for (name, i), (module, a_name, b_name) in found.items():
            of_part = slices.setdefault(name, [None] * len(self.parts[name].sources))
            of_part[i] = self._slice(name, i, module, a_name, b_name)
        rank = max(len(one.scale) for part in slices.values() for one in part if one is not None)
        sorted_parts = {name: tuple(slices[name]) for name in sorted(slices)}
        return Adapter(_digest(sorted_parts), rank, sorted_parts)

    def _pairs(self, places: Mapping[str, tuple[str, int]]) -> dict[tuple[str, int], tuple[str, str, str]]:
        """(part, source) -> its module on file, names of its A and B."""
        matrices: dict[str, dict[str, str]] = {}
        seen: dict[tuple[str, str], str] = {}
        unknown, copies = [], []
        for name in self.tensors.where:
            if _DORA in name:
                raise ValueError(
                    f"{self.folder} is an adapter with DoRA (it has {name}), which is not served: train it with use_dora=False"
                )
            if (match := _LORA.fullmatch(name)) is not None:
                if (other := seen.setdefault((self._ours(match["module"]), match["matrix"]), name)) != name:
                    raise ValueError(f"{self.folder} has {other} and {name}, which are the same matrix: keep one of them")
                matrices.setdefault(match["module"], {})[match["matrix"]] = name
            elif (match := _COPIES.fullmatch(name)) is not None and self._ours(match["module"]) in places:
                copies.append((name, self._ours(match["module"])))
            else:
                unknown.append(name)
        if unknown:
            raise ValueError(
                f"{self.folder} has tensors that belong to no adapter of a linear layer or an embedding: {_some(unknown)}. "
                "Save the adapter alone, by save_pretrained of peft"
            )
        if unpaired := [name for of_module in matrices.values() if len(of_module) == 1 for name in of_module.values()]:
            raise ValueError(
                f"{self.folder} has tensors without their other half (lora_A, lora_B): {_some(unpaired)}; save it again"
            )
        ours = {module: self._ours(module) for module in matrices}
        if experts := [module for module, name in ours.items() if name not in places and re.search(r"\bexperts\b", name)]:
            raise ValueError(
                f"{self.folder} adapts experts, which is not served: {_some(experts)}. Train it with target_modules of attention, "
                "dense layers or of shared experts"
            )
        if homeless := [module for module, name in ours.items() if name not in places]:
            raise ValueError(
                f"{self.folder} does not fit the model: of the modules that it adapts, the model has none to adapt by the name of "
                f"{_some(homeless)}. It has, for example, {_some(list(places), 3)} (lora.target_modules says which may be)"
            )
        if not matrices:
            raise ValueError(f"{self.folder} adapts no module at all: it has no lora_A and lora_B")
        self.config.check_modules([_plain(module) for module in matrices], places)
        for name, module in copies:
            self._check_copy(name, module)
        return {places[ours[module]]: (module, of_module["A"], of_module["B"]) for module, of_module in matrices.items()}

    def _ours(self, module: str) -> str:
        return our_name(f"{_plain(module)}.weight", self.family).removesuffix(".weight")

    def _slice(self, name: str, i: int, module: str, a_name: str, b_name: str) -> Slice:
        part, rank = self.parts[name], self.config.rank(_plain(module))
        if rank > self.max_rank:
            raise ValueError(
                f"{self.folder} has rank {rank} at {_plain(module)}, more than the {self.max_rank} that this engine has room for: "
                f"build it with max_lora_rank={rank} (lora.max_rank)"
            )
        assert part.columns is not None
        inputs, outputs = (part.rows[i], part.columns) if name == "embed" else (part.columns, part.rows[i])
        a = self._matrix(a_name, (rank, inputs))
        b = self._matrix(b_name, (outputs, rank))
        if part.layout == "interleaved":
            b = b[part.rows_on_disk]
        scale = torch.full((rank,), self.config.scale(_plain(module)))
        return Slice(a.to(self.dtype).contiguous(), b.to(self.dtype).contiguous(), scale)

    def _matrix(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        if (found := self.tensors.shape(name)) != shape:
            raise ValueError(
                f"{self.folder} was made for another model, or its adapter_config.json is not its own: {name} is {list(found)}, "
                f"and this model and rank need {list(shape)}"
            )
        matrix = self.tensors.read_float(name, shape)
        if not torch.isfinite(matrix.to(self.dtype)).all():
            raise ValueError(f"{self.folder}: {name} has values that are not finite in {str(self.dtype).removeprefix('torch.')}")
        return matrix

    def _check_copy(self, name: str, module: str) -> None:
        """Raises ValueError unless a weight of the base model is the model's."""
        same = False
        if self.base is not None:
            theirs = {our_name(stored, self.family): (file, stored) for stored, file in tensor_files(self.base).items()}
            found = TensorFiles(self.base, theirs)
            # The logits of a model whose embedding serves them are on file as that.
            names = (f"{module}.weight", f"{self.family.base}{self.family.embed}.weight")
            stored = next((name for name in names if name in theirs), None)
            if stored is not None and found.shape(stored) == self.tensors.shape(name):
                ours, own = found.read(stored, None), self.tensors.read(name, None)
                same = torch.equal(ours.to(own.dtype), own)
            found.close()
        if not same:
            raise ValueError(
                f"{self.folder} brings a whole {module} ({name}), which is not the model's: only low-rank updates are served. "
                "Train without resizing embeddings, and save with save_pretrained(..., save_embedding_layers=False)"
            )


def _plain(module: str) -> str:
    """Without what peft wraps a model in."""
    return module.removeprefix("base_model.model.")


def _digest(parts: Mapping[str, Iterable[Slice | None]]) -> str:
    digest = blake2b(digest_size=16)
    for name, slices in parts.items():
        for i, one in enumerate(slices):
            if one is not None:
                digest.update(f"{name}/{i}/{one.a.dtype}/{tuple(one.a.shape)}/{tuple(one.b.shape)}".encode())
                for tensor in (one.a, one.b, one.scale):
                    digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"it holds {_some(names)}" if names else "it is empty"


def _some(names: list[Any], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + rest
