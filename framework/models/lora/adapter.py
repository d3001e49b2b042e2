"""An adapter in the host's memory, in the model's own parts; and which parts of a model can be adapted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from ..architecture import Architecture
from ..parts import RECURRENCE_LINEARS, Part, layer_parts, model_parts

MATRICES_OUTSIDE = ("embed", "project_in", "project_out", "lm_head")
"""Parts outside the layers that can be adapted."""


@dataclass(frozen=True)
class Slice:
    """What an adapter adds to one source of a part: B @ (scale * (A @ x)). On the CPU.

    a      [r, K] K: columns of the part; of the embedding the vocabulary, whose columns are looked up
    b      [N, r] N: rows of the source, in the order of the part's; of the embedding its width
    scale  float32 [r]
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of a model's weights.

    key    hex digest of all that its outputs depend on
    rank   the largest of its slices
    parts  name as in ``adaptable_parts`` -> a slice for each source of the part, None where that is not adapted
    """

    key: str
    rank: int
    parts: Mapping[str, tuple[Slice | None, ...]]

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        slices = (one for part in self.parts.values() for one in part if one is not None)
        return sum(tensor.nbytes for one in slices for tensor in (one.a, one.b, one.scale))


def adaptable_parts(architecture: Architecture, target_modules: Iterable[str] | None = None) -> dict[str, Part]:
    """embed, project_in, project_out, lm_head, layers.N.NAME -> the part, of all that can be adapted: matrices, but for experts,
    routers, and what is split into weights per head. The logits of a model whose embedding serves them have a part of their own
    here: an adapter of one is none of the other. target_modules: as of ``LoraConfig``.

    Raises ValueError for target modules that the model has not."""
    outside = model_parts(architecture)
    if architecture.has_logits and "lm_head" not in outside:
        embed = outside["embed"]
        outside["lm_head"] = replace(embed, sources=(architecture.family.lm_head,))
    found = {name: outside[name] for name in MATRICES_OUTSIDE if name in outside}
    for index in range(len(architecture.layers)):
        for name, part in layer_parts(architecture, index).items():
            if (part.quantizable or name in RECURRENCE_LINEARS) and not part.num_experts:
                found[f"layers.{index}.{name}"] = part
    if target_modules is None:
        return found
    wanted = list(target_modules)
    if unknown := [
        end for end in wanted if not any(is_target(source, (end,)) for part in found.values() for source in part.sources)
    ]:
        ends = sorted({source.rpartition(".")[2] for part in found.values() for source in part.sources})
        raise ValueError(
            f"lora.target_modules={wanted} cannot work: the model has no {', '.join(unknown)} that can be adapted; it has "
            + ", ".join(ends)
        )
    return {name: part for name, part in found.items() if any(is_target(source, wanted) for source in part.sources)}


def is_target(module: str, ends: Iterable[str]) -> bool:
    """Whether a module's name is one of these, or ends in one."""
    return any(module == end or module.endswith(f".{end}") for end in ends)
