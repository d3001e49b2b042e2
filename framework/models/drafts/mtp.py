"""Multi-token prediction modules (DeepSeek-V3, arXiv 2412.19437): one layer over the next token's embedding and the last state.

Names read: Qwen3-Next's (``mtp.*``), DeepSeek's (``model.layers.{n}.*``, n the first number after the target's layers) and
MiMo's (``model.mtp_layers.0.*``), in the target's checkpoint or in a folder of their own. Of several modules the first drafts
every token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...plan import BoundKernel
from ..batch import ForwardBatch
from ..layers.block import PreNormBlock, kept_by
from ..layers.linear import Linear
from ..parts import Part, layer_parts
from ..read import ModelInfo
from .files import HeadFiles
from .head import DraftHead, Embed, HeadBinder, HeadInfo, layers_info, refuse_quantized, refuse_width, shape_of

LAYER_FAMILIES = {"mimo": "qwen2"}
"""model_type of a target -> the family whose layers its module has, where that is another."""
MODULES = {
    "qwen3_next": {"fc": "fc", "pre_fc_norm_embedding": "embed_norm", "pre_fc_norm_hidden": "hidden_norm", "norm": "norm"},
    "deepseek": {
        "eh_proj": "fc",
        "enorm": "embed_norm",
        "hnorm": "hidden_norm",
        "shared_head.norm": "norm",
        "shared_head.head": "lm_head",
        "embed_tokens": "embed",
    },
    "mimo": {"input_proj": "fc", "token_layernorm": "embed_norm", "hidden_layernorm": "hidden_norm", "final_layernorm": "norm"},
}
"""Name on disk, below the module's prefix -> ours; every other name is one of the layer's."""


@dataclass(frozen=True)
class MtpInfo(HeadInfo):
    """names: whose the names on disk are, a key of ``MODULES``. DeepSeek's and MiMo's modules see no embedding at position 0, and
    MiMo's reads the state before the embedding."""

    names: str = "qwen3_next"


def prefixes(names: str, num_layers: int) -> tuple[str, ...]:
    """What the names of the first module begin with."""
    return {
        "qwen3_next": ("mtp.layers.0.", "mtp."),
        "deepseek": (f"model.layers.{num_layers}.",),
        "mimo": ("model.mtp_layers.0.",),
    }[names]


def our_name(names: str, num_layers: int) -> Callable[[str], str | None]:
    """Renames the first module's tensors, and leaves out all others."""

    def rename(name: str) -> str | None:
        for prefix in prefixes(names, num_layers):
            if name.startswith(prefix):
                module, _, kind = name.removeprefix(prefix).rpartition(".")
                if module.startswith("layers."):
                    return None
                return f"{MODULES[names][module]}.{kind}" if module in MODULES[names] else f"model.layers.0.{module}.{kind}"
        return None

    return rename


def read_mtp(folder: Path, config: Mapping[str, Any], target: ModelInfo) -> MtpInfo:
    """The module of a folder, the target's own or another. Raises ValueError for none, and for one that does not fit, before any
    weight is read."""
    stored, num_layers = set(HeadFiles(folder).shapes), len(shape_of(target).layers)
    present = [names for names in MODULES if any(name.startswith(prefixes(names, num_layers)) for name in stored)]
    if not present:
        raise ValueError(
            f"{folder} has no multi-token prediction module: neither mtp.*, model.mtp_layers.0.* nor model.layers.{num_layers}.*; "
            "take a model that has one, or another method"
        )
    (names,) = present
    if any(re.search(r"\.(kv_a_proj_with_mqa|kv_b_proj)\.", name) for name in stored):
        raise ValueError(f"the multi-token prediction module in {folder} has multi-head latent attention, which is not served yet")
    if config.get("model_type") in ("qwen3_next", "qwen3_5", "qwen3_5_moe"):
        raise ValueError(f"the multi-token prediction module in {folder} has gated attention, which is not served yet")
    refuse_quantized(config, folder)
    model_type = config.get("model_type")
    model = layers_info({**config, "model_type": LAYER_FAMILIES.get(str(model_type), model_type)}, target, folder)
    refuse_width(shape_of(model).hidden_size, target, folder)
    info = MtpInfo(model, HeadFiles(folder, our_name(names, num_layers)), names=names)
    info.files.check(mtp_parts(info).values(), (r"\.inv_freq$",))
    return info


def mtp_parts(info: MtpInfo) -> dict[str, Part]:
    """Every part of the module. Embedding and projection may be the target's."""
    a, size = info.architecture, info.architecture.hidden_size
    parts = {name: Part((name,), (size,), always_float=True) for name in ("embed_norm", "hidden_norm", "norm")}
    parts["fc"] = Part(("fc",), (size,), 2 * size)
    if "embed.weight" in info.files.shapes:
        parts["embed"] = Part(("embed",), (a.vocab_size,), size, always_float=True)
    if "lm_head.weight" in info.files.shapes:
        parts["lm_head"] = Part(("lm_head",), (a.vocab_size,), size)
    return parts | layer_parts(a, 0)


class Mtp(DraftHead):
    """A multi-token prediction module."""

    def __init__(
        self,
        info: MtpInfo,
        block: PreNormBlock,
        embed: Embed,
        norms: tuple[BoundKernel, BoundKernel, BoundKernel],
        fc: Linear,
        lm_head: Linear,
    ) -> None:
        """norms: of the embedding, of the state, of what the layer returns."""
        super().__init__(info, [kept_by(block.attention)], info.architecture.vocab_size)
        self._block, self._embed, self._fc, self._lm_head = block, embed, fc, lm_head
        self._embed_norm, self._hidden_norm, self._norm = norms
        self._hidden_first, self._skips_start = info.names == "mimo", info.names != "qwen3_next"

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor, aux: torch.Tensor | None, batch: ForwardBatch
    ) -> torch.Tensor:
        """As ``DraftHead.forward``; ``aux`` is not read."""
        embeds = self._embed(token_ids, positions)
        if self._skips_start:
            embeds = embeds.masked_fill(positions[:, None] == 0, 0.0)
        pair = [self._embed_norm(embeds, None), self._hidden_norm(hidden, None)]
        x = self._fc(torch.cat(pair[::-1] if self._hidden_first else pair, dim=-1))
        return self._norm(*self._block(x, None, replace(batch, positions=positions)))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As ``DraftHead.logits``."""
        return self._lm_head(hidden)


def build_mtp(info: MtpInfo, binder: HeadBinder) -> Mtp:
    """Reads the weights and binds the layers."""
    parts = mtp_parts(info)
    return Mtp(
        info,
        binder.block(parts, 0),
        binder.embed(parts.get("embed")),
        (binder.norm(parts["embed_norm"]), binder.norm(parts["hidden_norm"]), binder.norm(parts["norm"])),
        binder.linear(parts["fc"]),
        binder.linear(parts["lm_head"]) if "lm_head" in parts else binder.target.logits,
    )
