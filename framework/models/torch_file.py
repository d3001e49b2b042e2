"""Files of torch.save, which hold pickles: read so that nothing of them can run."""

from __future__ import annotations

import zipfile
from collections.abc import KeysView
from pathlib import Path

import torch


class TorchFile:
    """A file of torch.save that holds tensors by name and nothing that could run code, with what is used of safetensors' interface;
    mapped, not read, where torch can."""

    def __init__(self, path: Path) -> None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # torch raises many kinds, and one of them names every object it refuses
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path} cannot be read as tensors alone ({why}): download it again") from error
        if not isinstance(found, dict) or not all(isinstance(name, str) and _is_plain(of) for name, of in found.items()):
            raise ValueError(f"{path} holds {type(found).__name__}, but dense tensors by name are expected")
        self._tensors: dict[str, torch.Tensor] = found

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._tensors = {}

    def keys(self) -> KeysView[str]:
        """Names of the tensors."""
        return self._tensors.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor of the file."""
        return self._tensors[name]

    def get_slice(self, name: str) -> _Slice:
        """What tells the shape of a tensor, and gives parts of it."""
        return _Slice(self._tensors[name])


def _is_plain(found: object) -> bool:
    return isinstance(found, torch.Tensor) and found.layout == torch.strided and found.device.type == "cpu"


class _Slice:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        return self._tensor[index]
