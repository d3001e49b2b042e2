"""How sure a model is of the tokens of a canvas."""

from __future__ import annotations

import torch


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """f32 [E], in nats, of logits f32 [E, V]."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)
