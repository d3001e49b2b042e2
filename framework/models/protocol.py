"""What the runner needs of a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from ..engine.kv_cache.spec import CacheGroup, PagedKV, State
from ..plan import LoraMeta
from .batch import ForwardBatch
from .expert_balancer import ExpertBalancer
from .layers.experts import Lockstep
from .lora.slots import LoraSlots


@runtime_checkable
class Redrawn(Protocol):
    """A model that draws its canvases anew, and is told in each pass what it said in the one before."""

    hidden_size: int

    def said(self, logits: torch.Tensor) -> torch.Tensor:
        """logits f32 [E, V] of a pass -> [E, H] in the model's dtype, for ``CanvasTokens`` of the next."""


class Model(Protocol):
    """A decoder, ours or the transformers library's. Everything runs under ``torch.inference_mode``."""

    dtype: torch.dtype
    vocab_size: int
    max_model_len: int
    num_unscored: int
    """Tokens behind the vocabulary that stand in prompts, and have no logit."""

    decides_on_host: bool
    """Whether Python looks at a step's numbers. A recording on a CPU, where reading them is no event, would not look again."""

    is_last: bool
    """Whether its hidden states are the final ones: of a pipeline only those of the last stage are."""

    lora: LoraSlots | None
    """Its adapters; None: it has none."""
    lockstep: Lockstep | None
    """Of steps that several schedulers' ranks take together, because they share the experts; None: there is one scheduler."""

    balancer: ExpertBalancer | None
    """Moves experts among ranks; None: they stay where they are."""

    def cache_specs(self) -> list[PagedKV | None]:
        """What each layer keeps in the cache; None: nothing."""

    def state_specs(self) -> dict[int, State]:
        """What layers keep of a request beside the cache, by their number in this process; empty: none keeps states."""

    def set_groups(self, groups: tuple[CacheGroup, ...]) -> None:
        """Tells which KV group serves which layer."""

    def begin_step(self, batch: ForwardBatch) -> None:
        """Once per step, before ``forward``: lets attention prepare what the layers of a group share."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Final hidden states [T, H] of a step; writes the cache."""

    def join(self, num_tokens: int, device: torch.device) -> None:
        """Takes part in a step of ``lockstep`` that has nothing for this scheduler's ranks. num_tokens: what the fullest has."""

    def logits(self, hidden: torch.Tensor, lora: LoraMeta | None = None) -> torch.Tensor:
        """hidden [R, H] -> [R, V] in the model's dtype. lora: adapters of the rows; None: none has one."""
