"""The files that a checkpoint's tensors lie in: safetensors or torch.save's, one or several with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .hub import check_inside, read_json
from .quantization.scheme import WIDE_FLOATS
from .torch_file import TorchFile


class TensorFiles:
    """Tensors of the files in a folder, which are opened on the CPU as they are needed.

    where           our name -> file, name on disk
    num_bytes_read  so far
    """

    def __init__(self, folder: Path, where: Mapping[str, tuple[str, str]], opened: Mapping[str, Any] | None = None) -> None:
        """opened: files that are open already, by name."""
        self.folder, self.where = folder, where
        self.num_bytes_read = 0
        self._opened = dict(opened or {})

    def read(self, name: str, shape: tuple[int, ...] | None, index: tuple[slice, ...] | None = None) -> torch.Tensor:
        """A tensor as it lies on disk. shape: that it must have; None: any; index: what is wanted of it; None: all. Raises
        ValueError for one that is not there, or has another shape."""
        stored, (file, stored_name) = self._slice(name), self.where[name]
        found = tuple(stored.get_shape())
        if shape is not None and found not in (shape, (1, *shape)):  # the latter as Ernie keeps the bias of the choice of experts
            raise ValueError(f"{file}: tensor {stored_name} has shape {found}, but config.json asks for {shape}")
        tensor = self._opened[file].get_tensor(stored_name) if index is None else stored[index]
        self.num_bytes_read += tensor.nbytes
        return tensor[0] if shape is not None and found == (1, *shape) else tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, as ``read`` finds it."""
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        """What a tensor is read through."""
        if name not in self.where:
            raise ValueError(f"the checkpoint in {self.folder} has no tensor {name}, which its config.json asks for")
        file, stored_name = self.where[name]
        if file not in self._opened:
            self._opened[file] = open_shard(self.folder / file)
        try:
            return self._opened[file].get_slice(stored_name)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self.folder / file} has no tensor {stored_name}, though the index says so") from error

    def read_float(self, name: str, shape: tuple[int, ...], index: tuple[slice, ...] | None = None) -> torch.Tensor:
        """As ``read``, of floats of 16 bits or more. Raises ValueError for others."""
        tensor = self.read(name, shape, index)
        if tensor.dtype not in WIDE_FLOATS:
            file, stored_name = self.where[name]
            raise ValueError(
                f"{file}: tensor {stored_name} is {tensor.dtype}, but nothing beside it says how it is quantized: floats of "
                "16 bits or more are expected"
            )
        return tensor

    def close(self) -> None:
        """Closes the files."""
        self._opened.clear()


def open_shard(path: Path) -> Any:
    """A safetensors file, or a ``TorchFile``, opened on the CPU. Raises ValueError for one that is missing, cut off or hostile."""
    if path.suffix == ".bin":
        return TorchFile(path)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or not whole ({error}): download the checkpoint again") from error


def tensor_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file of the folder. Raises ValueError for files that are not there, or lie elsewhere."""
    paths: list[Path] = []
    for single, pattern in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        if (folder / f"{single}.index.json").is_file():
            return _indexed(folder, f"{single}.index.json")
        if (folder / single).is_file():  # beside it there may be the same weights in another layout
            paths = [folder / single]
        else:
            paths = sorted(folder.glob(pattern))
        if paths:
            break
    if not paths:
        raise ValueError(
            f"{folder} has no *.safetensors and no pytorch_model*.bin files (other formats are not read); convert the checkpoint "
            "with save_pretrained of transformers, or use model.load_format=dummy"
        )
    found: dict[str, str] = {}
    for path in paths:
        with open_shard(path) as opened:
            found.update(dict.fromkeys(opened.keys(), path.name))
    return found


def _indexed(folder: Path, index: str) -> dict[str, str]:
    files = read_json(folder, index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{folder / index} has no weight_map from tensors to files: download the checkpoint again")
    for file in sorted(set(files.values())):
        check_inside(folder, file, index)
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file} is missing, which {index} names: download the checkpoint again")
    return files
