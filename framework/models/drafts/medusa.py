"""Medusa (arXiv 2401.10774): head i guesses the (i + 1)th token after the next one from the target's last state alone.

Layouts read: the original (``{i}.{j}.linear`` are head i's residual blocks, ``{i}.{n}`` its projection), and
``blocks.{i}.layers.{j}`` with ``lm_heads.{i}`` or the target's projection for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..layers.linear import Linear
from ..parts import Part
from ..read import ModelInfo
from .files import HeadFiles
from .head import DraftHead, HeadBinder, HeadInfo, checked_count, refuse_quantized, refuse_vocabulary, refuse_width, shape_of


@dataclass(frozen=True)
class MedusaInfo(HeadInfo):
    """num_blocks: residual blocks of each of ``most`` heads."""

    num_blocks: int = 1


def our_name(name: str) -> str:
    """The original's names on disk in the words of the other layout."""
    name = re.sub(r"^(medusa_heads?|model)\.", "", name)
    name = re.sub(r"^(\d+)\.(\d+)\.linear\.", r"blocks.\1.layers.\2.", name)
    return re.sub(r"^(\d+)\.\d+\.weight$", r"lm_heads.\1.weight", name)


def read_medusa(folder: Path, config: Mapping[str, Any], target: ModelInfo) -> MedusaInfo:
    """The heads of a folder. Raises ValueError for heads that do not fit, before any weight is read."""
    refuse_quantized(config, folder)
    vocab_size = shape_of(target).vocab_size
    refuse_vocabulary(config.get("vocab_size", vocab_size), target, folder)
    refuse_width(config.get("hidden_size", shape_of(target).hidden_size), target, folder)
    files = HeadFiles(folder, our_name)
    numbers = {int(match[1]) for name in files.shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
    most = checked_count(config.get("num_heads") or config.get("medusa_num_heads") or len(numbers), "heads", folder)
    num_blocks = checked_count(config.get("medusa_num_layers") or config.get("num_hidden_layers") or 1, "layers", folder)
    draft_vocab_size = config.get("truncated_vocab_size") or vocab_size
    info = MedusaInfo(target, files, target_ids=_token_map(files, draft_vocab_size, vocab_size), most=most, num_blocks=num_blocks)
    files.check(medusa_parts(info).values(), (r"^token_map$",))
    return info


def _token_map(files: HeadFiles, draft_vocab_size: int, vocab_size: int) -> torch.Tensor | None:
    if draft_vocab_size == vocab_size:
        return None
    if files.shapes.get("token_map") != (draft_vocab_size,):
        raise ValueError(
            f"the Medusa heads in {files.folder} draft {draft_vocab_size} of {vocab_size} tokens, but the shape of their token_map "
            f"is {files.shapes.get('token_map')}"
        )
    ids = files.read("token_map").long()
    if bool(((ids < 0) | (ids >= vocab_size)).any()):
        raise ValueError(f"the Medusa heads in {files.folder}: token_map leads beyond the vocabulary of {vocab_size}")
    return ids


def medusa_parts(info: MedusaInfo) -> dict[str, Part]:
    """Every part of the heads. Their projections may be the target's."""
    files, size, vocab_size = info.files, shape_of(info.model).hidden_size, shape_of(info.model).vocab_size
    rows = vocab_size if info.target_ids is None else len(info.target_ids)
    parts = {}
    for head in range(info.most or 0):
        for block in range(info.num_blocks):
            name = f"blocks.{head}.layers.{block}"
            parts[name] = Part((name,), (size,), size, bias=f"{name}.bias" in files.shapes)
        if f"lm_heads.{head}.weight" in files.shapes or info.target_ids is not None:
            parts[f"lm_heads.{head}"] = Part((f"lm_heads.{head}",), (rows,), size)
    return parts


class Medusa(DraftHead):
    """Medusa's heads, which need no cache: each drafts from the state at the last accepted token."""

    def __init__(self, info: MedusaInfo, blocks: list[list[Linear]], lm_heads: list[Linear], vocab_size: int) -> None:
        """blocks, lm_heads: of each head."""
        super().__init__(info, [], vocab_size)
        self._blocks, self._lm_heads = blocks, lm_heads

    def draft_logits(self, hidden: torch.Tensor, num_drafts: int) -> torch.Tensor:
        """hidden [R, H], the target's final states after its last norm -> [R, num_drafts, vocab_size]; num_drafts <= ``most``."""
        rows = []
        for blocks, lm_head in zip(self._blocks[:num_drafts], self._lm_heads):
            x = hidden
            for block in blocks:
                x = x + torch.nn.functional.silu(block(x))
            rows.append(lm_head(x))
        return torch.stack(rows, dim=1)


def build_medusa(info: MedusaInfo, binder: HeadBinder) -> Medusa:
    """Reads the weights and binds the layers."""
    linears = {name: binder.linear(part) for name, part in medusa_parts(info).items()}
    heads = range(info.most or 0)
    return Medusa(
        info,
        [[linears[f"blocks.{head}.layers.{block}"] for block in range(info.num_blocks)] for head in heads],
        [linears.get(f"lm_heads.{head}", binder.target.logits) for head in heads],
        shape_of(info.model).vocab_size if info.target_ids is None else len(info.target_ids),
    )
