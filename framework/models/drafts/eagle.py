"""EAGLE (arXiv 2401.15077) and EAGLE-3 (arXiv 2503.01840): one or a few layers that extrapolate the target's states.

Layouts read: EAGLE-1's (``fc`` [H, 2H], ``layers.0`` without input norm), EAGLE-3's original (``midlayer``) and that of
speculators (``layers.0``, the layer's config in ``transformer_layer_config``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...plan import BoundKernel
from ..batch import ForwardBatch
from ..layers.attention import Attention
from ..layers.block import Block, HiddenAndResidual, Mlp, kept_by
from ..layers.linear import Linear
from ..parts import Part, layer_parts
from ..read import ModelInfo
from .files import HeadFiles
from .head import DraftHead, Embed, HeadBinder, HeadInfo, checked_object, layers_info, refuse_quantized, refuse_width, shape_of

IGNORED = (r"^t2d$", r"^d2t$", r"\.inv_freq$", r"^verifier_")
EMBED, LM_HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True)
class EagleInfo(HeadInfo):
    """Choices of one EAGLE head.

    is_eagle3             its first layer reads embedding and state side by side, each normalized; else ``fc`` mixes them before it
    num_inputs            of ``fc``; 0: there is none
    norm_before_residual  what the first layer's outputs are added to is normalized too
    norm_before_fc        one norm over the states that ``fc`` reads; fc_norm: one for each of them
    norm_output           the last norm's output is what a chain goes on with
    """

    is_eagle3: bool = False
    num_inputs: int = 0
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


def our_name(name: str) -> str:
    """EAGLE's names on disk in the decoder's words."""
    name = re.sub(r"^(model\.)?midlayer\.", "layers.0.", name).removeprefix("model.")
    return name if name.startswith(("lm_head.", "d2t", "t2d", "verifier_")) else f"model.{name}"


def read_eagle(folder: Path, config: Mapping[str, Any], target: ModelInfo) -> EagleInfo:
    """An EAGLE-1 head. Raises ValueError for one that does not fit, before any weight is read."""
    refuse_quantized(config, folder)
    if "speculators_model_type" in config:
        raise ValueError(f"{folder} holds an EAGLE head in the layout of speculators, which is read for eagle3 only")
    model = layers_info(config, target, folder, config.get("num_hidden_layers", 1))
    refuse_width(shape_of(model).hidden_size, target, folder)
    info = EagleInfo(model, HeadFiles(folder, our_name), num_inputs=2 * shape_of(model).hidden_size)
    info.files.check(eagle_parts(info).values(), (*IGNORED, r"^lm_head\.weight$"))  # a copy of the target's
    return info


def read_eagle3(folder: Path, config: Mapping[str, Any], target: ModelInfo) -> EagleInfo:
    """An EAGLE-3 head of either layout. Raises ValueError for one that does not fit, before any weight is read."""
    refuse_quantized(config, folder)
    speculators = "speculators_model_type" in config
    if speculators and config["speculators_model_type"] != "eagle3":
        raise ValueError(f"{folder} holds a head of speculators' kind {config['speculators_model_type']!r}, not eagle3")
    of_layer = checked_object(config, "transformer_layer_config", folder) if speculators else config
    eagle = checked_object(config, "eagle_config", folder)
    model = layers_info(of_layer, target, folder, of_layer.get("num_hidden_layers", 1))
    size, vocab_size = shape_of(model).hidden_size, shape_of(model).vocab_size
    width = config.get("target_hidden_size") or size
    refuse_width(width, target, folder)
    files = HeadFiles(folder, our_name)
    if f"{EMBED}.weight" not in files.shapes and size != width:
        raise ValueError(f"the drafting head in {folder} is {size} wide and has no embedding, but the target's is {width} wide")
    aux = _aux_layers(config, eagle, target, folder) if eagle.get("use_aux_hidden_state", True) else ()
    info = EagleInfo(
        model,
        files,
        aux_layers=aux,
        target_ids=target_ids(files, config.get("draft_vocab_size") or vocab_size, vocab_size),
        is_eagle3=True,
        num_inputs=width * len(aux),
        norm_before_residual=bool(config.get("norm_before_residual", speculators)),
        norm_before_fc=bool(config.get("norm_before_fc", eagle.get("norm_before_fc"))),
        fc_norm=bool(config.get("fc_norm")),
        norm_output=bool(config.get("norm_output")),
    )
    stored = files.shapes.get("model.fc.weight", (info.num_inputs,))[-1]
    if stored != info.num_inputs:
        raise ValueError(
            f"the drafting head in {folder} reads {stored} inputs, but the target's states before layers {list(aux)} are "
            f"{len(aux)} x {width}: eagle_aux_hidden_state_layer_ids must name as many layers as it was trained with (by default "
            "2, n // 2 and n - 3, some of which are the same in a target of few layers)"
        )
    files.check(eagle_parts(info).values(), IGNORED)
    return info


def _aux_layers(config: Mapping[str, Any], eagle: Mapping[str, Any], target: ModelInfo, folder: Path) -> tuple[int, ...]:
    count = len(shape_of(target).layers)
    given = eagle.get("eagle_aux_hidden_state_layer_ids") or config.get("eagle_aux_hidden_state_layer_ids")
    layers = given or sorted({2, count // 2, count - 3})
    if not isinstance(layers, list) or len({*map(str, layers)}) < len(layers):
        raise ValueError(
            f"the drafting head in {folder}: eagle_aux_hidden_state_layer_ids={layers!r} must be a list of layers, each once"
        )
    if not all(type(layer) is int and 0 <= layer < count for layer in layers):
        raise ValueError(f"the drafting head in {folder} reads states before layers {layers} of a target of {count} layers")
    return tuple(layers)


def target_ids(files: HeadFiles, draft_vocab_size: int, vocab_size: int) -> torch.Tensor | None:
    """int64 [draft_vocab_size]. ``d2t`` holds offsets: token i of the head is the target's i + d2t[i]. None: they are the same."""
    if "d2t" not in files.shapes:
        if draft_vocab_size != vocab_size:
            raise ValueError(
                f"the drafting head in {files.folder} drafts {draft_vocab_size} of {vocab_size} tokens: d2t is missing"
            )
        return None
    if files.shapes["d2t"] != (draft_vocab_size,):
        raise ValueError(f"the drafting head in {files.folder}: d2t has shape {files.shapes['d2t']}, not ({draft_vocab_size},)")
    ids = torch.arange(draft_vocab_size) + files.read("d2t").long()
    beyond = ids[(ids < 0) | (ids >= vocab_size)]
    if len(beyond):
        raise ValueError(f"the drafting head in {files.folder}: d2t leads to token {int(beyond[0])}, beyond {vocab_size}")
    return ids


def eagle_parts(info: EagleInfo) -> dict[str, Part]:
    """Every part of an EAGLE head; those of layer i as ``i.name``. Embedding and projection may be the target's."""
    a, size, files = info.architecture, info.architecture.hidden_size, info.files
    vocab_size = a.vocab_size if info.target_ids is None else len(info.target_ids)
    parts = {}
    if info.num_inputs:
        parts["fc"] = Part(("model.fc",), (size,), info.num_inputs, bias="model.fc.bias" in files.shapes)
    if f"{EMBED}.weight" in files.shapes:
        parts["embed"] = Part((EMBED,), (a.vocab_size,), size, always_float=True)
    if info.is_eagle3:
        parts["norm"] = Part(("model.norm",), (size,), always_float=True)
        if f"{LM_HEAD}.weight" in files.shapes or vocab_size != a.vocab_size:
            parts["lm_head"] = Part((LM_HEAD,), (vocab_size,), size)
    if info.norm_before_fc:
        parts["input_norm"] = Part(("model.input_norm",), (info.num_inputs,), always_float=True)
    if info.fc_norm:
        width = info.num_inputs // len(info.aux_layers)
        parts |= {f"fc_norm.{i}": Part((f"model.fc_norm.{i}",), (width,), always_float=True) for i in range(len(info.aux_layers))}
    for index in range(len(a.layers)):
        layer = layer_parts(a, index)
        if index == 0 and info.is_eagle3:
            layer["qkv"] = replace(layer["qkv"], columns=2 * size)
            layer["hidden_norm"] = Part(("model.layers.0.hidden_norm",), (size,), always_float=True)
        elif index == 0:
            del layer["attn_norm"]
        parts |= {f"{index}.{name}": part for name, part in layer.items()}
    return parts


@dataclass(slots=True)
class FirstLayer:
    """The layer that reads the embedding too. Of EAGLE-1, whose input ``fc`` has mixed, the norms of the inputs are None."""

    attention: Attention
    mlp: Mlp
    mlp_norm: BoundKernel
    embed_norm: BoundKernel | None = None
    hidden_norm: BoundKernel | None = None
    norm_before_residual: bool = False

    def __call__(self, embeds: torch.Tensor, x: torch.Tensor, batch: ForwardBatch) -> HiddenAndResidual:
        """x [T, H], which is overwritten -> (hidden, residual)."""
        inputs = residual = x
        if self.embed_norm is not None and self.hidden_norm is not None:
            normed = self.hidden_norm(x, None)
            inputs = torch.cat((self.embed_norm(embeds, None), normed), dim=-1)
            residual = normed if self.norm_before_residual else x
        return self.mlp(self.mlp_norm(self.attention(inputs, batch), residual)), residual


class Eagle(DraftHead):
    """EAGLE-1 and EAGLE-3. EAGLE-1 has no last norm: its output stands for the target's normalized state."""

    def __init__(
        self,
        info: EagleInfo,
        layers: tuple[FirstLayer, list[Block]],
        embed: Embed,
        fc: Linear | None,
        input_norms: list[list[BoundKernel]],
        norm: BoundKernel | None,
        lm_head: Linear,
        vocab_size: int,
    ) -> None:
        """input_norms: of what ``fc`` reads, one after the other, each of as many equal parts as it has kernels."""
        first, rest = layers
        super().__init__(info, [kept_by(layer.attention) for layer in (first, *rest)], vocab_size)
        self._first, self._rest, self._embed, self._fc, self._input_norms = first, rest, embed, fc, input_norms
        self._norm, self._lm_head, self._is_eagle3, self._norm_output = norm, lm_head, info.is_eagle3, info.norm_output

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor, aux: torch.Tensor | None, batch: ForwardBatch
    ) -> torch.Tensor:
        """As ``DraftHead.forward``."""
        embeds, batch = self._embed(token_ids, positions), replace(batch, positions=positions)
        if not self._is_eagle3:
            assert self._fc is not None
            x = self._fc(torch.cat((embeds, hidden), dim=-1))
        elif aux is not None and self._fc is not None:
            x = self._fc(self._normed(aux))
        else:
            x = hidden.clone()
        residual: torch.Tensor | None
        x, residual = self._first(embeds, x, batch)
        for layer in self._rest:
            x, residual = layer(x, residual, batch)
        if self._norm_output and self._norm is not None:
            return self._norm(x, residual)
        return x if residual is None else x.add_(residual)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As ``DraftHead.logits``."""
        if self._norm is not None and not self._norm_output:
            hidden = self._norm(hidden, None)
        return self._lm_head(hidden)

    def _normed(self, aux: torch.Tensor) -> torch.Tensor:
        for norms in self._input_norms:
            parts = aux.chunk(len(norms), dim=-1)
            aux = torch.cat([norm(part.contiguous(), None) for norm, part in zip(norms, parts)], dim=-1)
        return aux


def build_eagle(info: EagleInfo, binder: HeadBinder) -> Eagle:
    """Reads the weights and binds the layers."""
    parts = eagle_parts(info)
    norms = [[name for name in parts if name.startswith(kind)] for kind in ("input_norm", "fc_norm.")]
    layers = [
        {name.split(".", 1)[1]: part for name, part in parts.items() if name.startswith(f"{index}.")}
        for index in range(len(info.architecture.layers))
    ]
    attention, mlp, mlp_norm = binder.layer(layers[0], 0)
    first = FirstLayer(
        attention,
        mlp,
        mlp_norm,
        binder.norm(layers[0]["attn_norm"]) if info.is_eagle3 else None,
        binder.norm(layers[0]["hidden_norm"]) if info.is_eagle3 else None,
        info.norm_before_residual,
    )
    return Eagle(
        info,
        (first, [binder.block(layer, index) for index, layer in enumerate(layers[1:], start=1)]),
        binder.embed(parts.get("embed")),
        binder.linear(parts["fc"]) if "fc" in parts else None,
        [[binder.norm(parts[name]) for name in names] for names in norms if names],
        binder.norm(parts["norm"]) if "norm" in parts else None,
        binder.linear(parts["lm_head"]) if "lm_head" in parts else binder.target.logits,
        info.architecture.vocab_size if info.target_ids is None else len(info.target_ids),
    )
