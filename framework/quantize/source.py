"""The checkpoint that is to be quantized: floats, of a family whose linear layers are known by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..config import ROUNDED_SCHEMES, ModelConfig
from ..models.parts import Part, all_parts, layer_parts
from ..models.quantization.unquantized import Unquantized
from ..models.read import read_model
from ..models.tensor_files import open_shard, tensor_files
from ..models.weights import Checkpoint, our_name


class Source:
    """A float checkpoint, read tensor by tensor. Tensors go by the names of the family table, see ``Family``.

    stored  of every tensor, by its name here, the name in its file
    Raises ValueError for a model that is not there, does not fit its config.json, is of no native family, is quantized already,
    whose linear layers lie transposed, or whose layers keep states.
    """

    def __init__(self, model: str) -> None:
        info = read_model(ModelConfig(model))
        info.check_generates("quantization of checkpoints")
        if info.quantization is not None:
            method = info.quantization.method
            raise ValueError(f"model {model!r} is quantized already ({method}): quantize the float checkpoint it was made from")
        if info.architecture is None:
            raise ValueError(f"model {model!r} cannot be quantized, because its linear layers are not known: {info.reason}")
        if info.architecture.family.transposed:
            raise ValueError(
                f"model {model!r} cannot be quantized: {info.config['model_type']} stores its linear layers transposed (Conv1D), "
                "which the formats have no place for"
            )
        if info.architecture.has_states:
            raise ValueError(
                f"model {model!r} cannot be quantized before it is served: its layers keep states, which nothing here follows; "
                f"serve it with one of the schemes that round weights as they are loaded ({', '.join(ROUNDED_SCHEMES)})"
            )
        assert info.folder is not None
        self.folder: Path = info.folder
        self.config, self.architecture, self.dtype = info.config, info.architecture, getattr(torch, info.dtype)
        a = self.architecture
        checkpoint = Checkpoint(self.folder, a.family, torch.device("cpu"), self.dtype, Unquantized())
        checkpoint.check(all_parts(a), (*a.family.ignored, *([rf"^{a.family.lm_head}\.weight$"] if a.tied else [])))
        if a.tied:
            checkpoint.check_tied(a)
        files = tensor_files(self.folder)
        self.stored = {our_name(name, a.family): name for name in files}
        self._files = {our_name(name, a.family): file for name, file in files.items()}

    @property
    def num_layers(self) -> int:
        return len(self.architecture.layers)

    def layer_prefix(self, index: int) -> str:
        """Of the names of a layer's tensors."""
        return f"{self.architecture.family.base}{self.architecture.family.layers}.{index}."

    def layer_linears(self, index: int) -> dict[str, Part]:
        """The linear layers and experts of a layer, in the order in which data goes through them."""
        return {name: part for name, part in layer_parts(self.architecture, index).items() if part.quantizable}

    def linears(self) -> Iterator[Part]:
        """All that is quantized."""
        for index in range(self.num_layers):
            yield from self.layer_linears(index).values()

    def float_modules(self) -> list[str]:
        """Linear layers that stay as they are: projections around the layers, routers, and that of the logits, which transformers
        calls lm_head whatever its name on disk is."""
        left = [part for part in all_parts(self.architecture) if not (part.always_float or part.quantizable)]
        names = [source for part in left for source in part.sources]
        return list(dict.fromkeys([*names, self.architecture.family.lm_head, "lm_head"]))

    def read(self, name: str) -> torch.Tensor:
        """A tensor as it lies in its file, on the CPU."""
        with open_shard(self.folder / self._files[name]) as opened:
            return opened.get_tensor(self.stored[name])

    def read_finite(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Floats to calculate with. Raises ValueError for another shape, and for values that no grid holds."""
        weight = self.read(name)
        at = f"{self.folder / self._files[name]}: tensor {self.stored[name]}"
        if tuple(weight.shape) != shape:
            raise ValueError(f"{at} has shape {tuple(weight.shape)}, but config.json asks for {shape}")
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ValueError(f"{at} is {weight.dtype}; floats of 16 bits or more are expected")
        if not torch.isfinite(weight).all():
            raise ValueError(f"{at} has values that are not finite, which cannot be quantized")
        return weight
