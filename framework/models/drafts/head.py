"""What drafting heads have in common: the description that is read first, and the module that is built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...plan import BoundKernel, KernelPlan
from ..architecture import Architecture
from ..batch import ForwardBatch
from ..binding.binder import Binder
from ..binding.mlp import bind_mlp, bind_moe
from ..decoder import Decoder
from ..layers.attention import Attention
from ..layers.block import Mlp, PreNormBlock
from ..layers.mixers import LayerStates
from ..layers.paged_attention import PagedAttention
from ..native import read_native
from ..paged_model import PagedModel
from ..parallel import Parallel
from ..parts import Part
from ..read import ModelInfo
from .files import HeadFiles, HeadWeights

Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""token_ids, positions int64 [T] -> [T, H]."""

MAX_COUNT = 1000
"""Layers or heads in a checkpoint of a drafting head, at most."""


@dataclass(frozen=True)
class HeadInfo:
    """A drafting head before any weight of it is read.

    model         dtype and longest sequence of the head, and the architecture of its layers; no layers: it has no cache
    files         its tensors, which are known to fit
    aux_layers    the target's states it reads: those before these layers, the residual added; () = the final one alone
    target_ids    int64 [draft vocabulary]: the target's token for each of the head's; None: they are the same
    most          how many tokens it can draft at a time; None: any number
    """

    model: ModelInfo
    files: HeadFiles
    aux_layers: tuple[int, ...] = ()
    target_ids: torch.Tensor | None = None
    most: int | None = None

    @property
    def architecture(self) -> Architecture:
        """Of its layers."""
        return shape_of(self.model)


class DraftHead(PagedModel):
    """A head that the proposer can step. Everything runs under ``torch.inference_mode``.

    Slot t of its cache belongs to the target's position t: there the head reads the token *after* t and the target's state *at*
    t, and guesses the token at t + 2.
    """

    def __init__(self, info: HeadInfo, attention: Sequence[PagedAttention | LayerStates], vocab_size: int) -> None:
        super().__init__(attention)
        self.dtype: torch.dtype = getattr(torch, info.model.dtype)
        self.max_model_len, self.vocab_size = info.model.max_model_len, vocab_size
        self.aux_layers, self.target_ids = info.aux_layers, info.target_ids
        self.hidden_size = shape_of(info.model).hidden_size

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor, aux: torch.Tensor | None, batch: ForwardBatch
    ) -> torch.Tensor:
        """One step over slots; writes the head's cache.

        token_ids  int64 [T]: the token after each slot
        positions  int64 [T] of the slots
        hidden     [T, H]: the target's final state at the slot (after its last norm), or, from a chain's second draft on, what
                   this returned for the slot before
        aux        [T, len(aux_layers) * H]: the target's states before ``aux_layers`` side by side; None from the second draft on
        batch      whose groups and caches are those of the slots
        -> [T, H]
        """
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What ``forward`` returned, [R, H] -> [R, vocab_size] over the head's vocabulary, see ``target_ids``."""
        raise NotImplementedError


class HeadBinder(Binder):
    """Binds the layers of a head, whose cache is its own."""

    def __init__(
        self, info: HeadInfo, target: Decoder, plan: KernelPlan, device: torch.device, block_size: int, cache_dtype: str
    ) -> None:
        weights = HeadWeights(info.files, device, getattr(torch, info.model.dtype))
        super().__init__(info.model, info.architecture, weights, plan, device, Parallel(), block_size, cache_dtype)
        self.target = target

    def layer(self, parts: Mapping[str, Part], index: int) -> tuple[Attention, Mlp, BoundKernel]:
        """Attention, MLP and the norm between them of the head's layer ``index``."""
        shape = self.a.layers[index]
        attention = self.attention.over_heads(dict(parts), shape, index, self.linear(parts["qkv"]))
        mlp = (
            bind_moe(self, dict(parts), shape.moe, index)
            if shape.moe
            else bind_mlp(self, dict(parts), self.linear(parts["gate_up"]))
        )
        return attention, mlp, self.norm(parts["mlp_norm"])

    def block(self, parts: Mapping[str, Part], index: int) -> PreNormBlock:
        """The head's layer ``index``, if it is as those of Llama."""
        attention, mlp, mlp_norm = self.layer(parts, index)
        return PreNormBlock(attention, mlp, mlp_norm, attn_norm=self.norm(parts["attn_norm"]))

    def embed(self, part: Part | None) -> Embed:
        """The head's own embedding, or the target's."""
        if part is None:
            return self.target.embed
        table = self.table(self.weights.weight(part))
        return lambda token_ids, positions: table(token_ids)


def layers_info(given: Mapping[str, Any], target: ModelInfo, folder: Path, num_layers: Any = 1) -> ModelInfo:
    """The architecture that a head's layers have, in the target's dtype, no longer than the target.

    Raises ValueError for layers that the native decoder does not cover, and another hidden size of the vocabulary.
    """
    if not given.get("model_type") or not isinstance(given["model_type"], str):
        raise ValueError(f"the config.json of the drafting head in {folder} names no model_type, so that its layers are not known")
    config = {**given, "num_hidden_layers": checked_count(num_layers, "layers", folder)}
    if isinstance(types := config.get("layer_types"), list):
        config["layer_types"] = types[-num_layers:]
    architecture, reason = read_native(config)
    if architecture is not None and (
        not architecture.family.gated
        or architecture.residual != "pre"
        or architecture.residual_scale is not None
        or architecture.latent is not None
        or architecture.has_states
        or architecture.family.gated_attention
    ):
        architecture, reason = None, f"its layers are those of {config['model_type']!r}; heads have layers like Llama's"
    if architecture is None:
        raise ValueError(f"the drafting head in {folder} cannot be served: {reason}")
    refuse_vocabulary(architecture.vocab_size, target, folder)
    limit = architecture.longest
    return replace(
        target, config=config, architecture=architecture, max_model_len=min(limit, target.max_model_len), quantization=None
    )


def checked_count(found: Any, what: str, folder: Path) -> int:
    """Of ``what`` in a config.json. Raises ValueError for what cannot be one."""
    if type(found) is not int or not 1 <= found <= MAX_COUNT:
        raise ValueError(f"the config.json of the drafting head in {folder} asks for {found!r} {what}: expected 1 to {MAX_COUNT}")
    return found


def checked_object(config: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    """A field of a config.json that holds fields itself; empty if it is not given. Raises ValueError for what has none."""
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"the config.json of the drafting head in {folder} has {name}={found!r}: expected an object")
    return found


def shape_of(model: ModelInfo) -> Architecture:
    """The architecture of a model that runs natively."""
    assert model.architecture is not None, "checked as the head was read"
    return model.architecture


def refuse_quantized(config: Mapping[str, Any], folder: Path) -> None:
    """Raises ValueError for a checkpoint whose weights are not floats."""
    if config.get("quantization_config") or config.get("compression_config"):
        raise ValueError(f"the drafting head in {folder} is quantized, which is not read for heads: take one of floats")


def refuse_vocabulary(found: int, target: ModelInfo, folder: Path) -> None:
    """Raises ValueError for a head of a target with another vocabulary."""
    if found != shape_of(target).vocab_size:
        raise ValueError(
            f"the drafting head in {folder} was made for a vocabulary of {found} tokens, but the target {target.name!r} has "
            f"{shape_of(target).vocab_size}: take a head of this target"
        )


def refuse_width(found: int, target: ModelInfo, folder: Path) -> None:
    """Raises ValueError for a head that reads states of another width than the target's."""
    if found != shape_of(target).hidden_size:
        raise ValueError(
            f"the drafting head in {folder} reads states of width {found}, but the target {target.name!r} has "
            f"{shape_of(target).hidden_size}: take a head that was trained for this target"
        )
