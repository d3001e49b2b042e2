"""The files of a drafting head: names and shapes before any weight is read, in safetensors or in files of torch.save."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..parts import Part, bias_name
from ..quantization.unquantized import Unquantized
from ..tensor_files import TensorFiles, open_shard, tensor_files
from ..torch_file import TorchFile
from ..weights import Checkpoint, Weights


class HeadFiles:
    """The tensors of a folder under the names of this package.

    shapes  name -> shape on disk
    Raises ValueError for a folder without weights, or with files that cannot be read.
    """

    def __init__(self, folder: Path, our_name: Callable[[str], str | None] = lambda name: name) -> None:
        """our_name: of a name on disk; None: not part of the head."""
        self.folder = folder
        self.opened: dict[str, Any] = {}
        self.where: dict[str, tuple[str, str]] = {}
        for stored, file in self._stored().items():
            if (ours := our_name(stored)) is not None:
                self.where[ours] = (file, stored)
        self.shapes = {name: self._shape(*place) for name, place in self.where.items()}

    def read(self, name: str) -> torch.Tensor:
        """A tensor as it lies on disk."""
        file, stored = self.where[name]
        return self._open(file).get_tensor(stored)

    def check(self, parts: Iterable[Part], ignored: Iterable[str] = ()) -> None:
        """Every tensor of ``parts`` is there in its shape, and nothing else. Raises ValueError for what is not so."""
        wanted: dict[str, tuple[int, ...]] = {}
        for part in parts:
            for name, _, shard, shape in part.tensors():
                wanted[name] = shape
                if part.bias:
                    wanted[bias_name(name)] = (part.rows[shard],)
        missing = sorted(set(wanted) - set(self.shapes))
        unknown = sorted(n for n in set(self.shapes) - set(wanted) if not any(re.search(pattern, n) for pattern in ignored))
        if missing or unknown:
            raise ValueError(
                f"the drafting head in {self.folder} does not fit its config.json: missing tensors: "
                f"{', '.join(missing[:20]) or 'none'}; tensors without a place in it: {', '.join(unknown[:20]) or 'none'}"
            )
        for name, shape in wanted.items():
            if self.shapes[name] != shape:
                raise ValueError(
                    f"the drafting head in {self.folder}: tensor {self.where[name][1]} has shape {self.shapes[name]}, but its "
                    f"config.json and the target ask for {shape}; take a head that was trained for this target"
                )

    def _stored(self) -> Mapping[str, str]:
        """Name on disk -> file."""
        if (self.folder / "model.safetensors.index.json").is_file() or any(self.folder.glob("*.safetensors")):
            return tensor_files(self.folder)
        paths = sorted(path for ending in ("*.bin", "*.pt") for path in self.folder.glob(ending))
        if not paths:
            raise ValueError(f"{self.folder} holds no weights of a drafting head: *.safetensors, *.bin or *.pt files are expected")
        opened = {path.name: TorchFile(path) for path in paths}
        self.opened = {**opened}
        found: dict[str, str] = {}
        for file, tensors in opened.items():
            found.update(dict.fromkeys(tensors.keys(), file))
        return found

    def _shape(self, file: str, stored: str) -> tuple[int, ...]:
        try:
            return tuple(self._open(file).get_slice(stored).get_shape())
        except Exception as error:  # of safetensors, which has a kind of its own
            raise ValueError(f"{self.folder / file} has no tensor {stored} ({error}): download the head again") from error

    def _open(self, file: str) -> Any:
        if file not in self.opened:
            self.opened[file] = open_shard(self.folder / file)
        return self.opened[file]


class HeadWeights(Checkpoint):
    """The floats of a drafting head, as layers are built from them."""

    def __init__(self, files: HeadFiles, device: torch.device, dtype: torch.dtype) -> None:
        Weights.__init__(self, device, dtype, Unquantized())
        self.files = TensorFiles(files.folder, files.where, files.opened)
