"""The tensors of one step, as the model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..plan import AttentionMeta, LayerKV, LoraMeta, StateMeta


@dataclass
class GroupBatch:
    """Where the tokens of a step lie in one KV group.

    slot_mapping  int64 [T]: slot of each token in the cache, -1 = do not write
    decode        the first rows (1 to 8 tokens each), ``num_decode_tokens`` tokens in all; None if there are none
    prefill       the other rows, with cu_q counted from the first of their tokens; None if there are none
    whole         tokens that see those after them, too; None if there are none
    blind         bool [T, 1]: tokens that see nothing of what an encoder gave, as there is nothing, or it comes later; None: all
                  see something
    """

    slot_mapping: torch.Tensor
    decode: AttentionMeta | None
    prefill: AttentionMeta | None
    whole: WholeTokens | None = None
    blind: torch.Tensor | None = None


@dataclass
class WholeTokens:
    """Tokens of a step that see each other, whichever comes first, and what is before them: int64 [E], as rows of ``meta`` that end
    with them. slots: int64 [pages, page_size], of the pages that the block table of ``meta`` lists, where in the cache their tokens
    lie; None: it lists those of the cache."""

    tokens: torch.Tensor
    meta: AttentionMeta
    slots: torch.Tensor | None = None


@dataclass
class ExpertTokens:
    """Which tokens of a step take which weights, where a model has some for images: int64 [V] and [T - V]. V is positive."""

    vision: torch.Tensor
    language: torch.Tensor


@dataclass
class ImageTokens:
    """Embeddings [E, H] of images, and which tokens of a step they replace: int64 [E]. experts: None where all tokens have the same
    weights."""

    tokens: torch.Tensor
    embeddings: torch.Tensor
    experts: ExpertTokens | None = None


@dataclass
class CanvasTokens:
    """Tokens of a step that are drawn anew: int64 [E]; said: [E, H], what the model said of each in the pass before; 0 in the
    first."""

    tokens: torch.Tensor
    said: torch.Tensor


@dataclass
class StateBatch:
    """What recurrent layers are handed. meta: whose tokens go through which row of the states; layers: the tensors [seats, ...] of
    each such layer, by its number in this process, in the order of ``State.shapes``; written in place."""

    meta: StateMeta
    layers: Mapping[int, tuple[torch.Tensor, ...]]


@dataclass
class ForwardBatch:
    """Tokens of a step, flat; rows ordered decodes first.

    token_ids          int64 [T]
    positions          int64 [T]: by which tokens rotate. Where a token has three that differ, the row of the tables of angles that
                       ``mixed`` fills
    num_decode_tokens  tokens at the front that belong to decode rows
    groups             one per KV group
    caches             by layer, of those that have one
    logits_indices     int64 [R']: tokens whose logits are wanted
    token_types        int64 [T]: which text of a pair each token is of; None: all are of the first
    images             embeddings that replace those of placeholders; None: there are none
    mixed              int64 [3, M]: time, row and column of such tokens, for the rows behind those of single positions
    lora               adapters of the tokens, and lora_of_logits of those whose logits are wanted; None: none has one
    states             of a model with recurrent layers
    canvas             of a model that draws its canvases anew; None: the step computes none
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    num_decode_tokens: int
    groups: list[GroupBatch]
    caches: Mapping[int, LayerKV]
    logits_indices: torch.Tensor
    token_types: torch.Tensor | None = None
    lora: LoraMeta | None = None
    lora_of_logits: LoraMeta | None = None
    images: ImageTokens | None = None
    mixed: torch.Tensor | None = None
    states: StateBatch | None = None
    canvas: CanvasTokens | None = None

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]
