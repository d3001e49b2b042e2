"""A smaller model with the same tokens guesses what the model will say."""

from __future__ import annotations

import torch

from ...models.batch import ForwardBatch
from ...models.decoder import Decoder
from ...models.protocol import Model


class DraftModel:
    """As Guesser has it: reads tokens alone, no states of the model."""

    ahead = 0
    input_width = 0

    def __init__(self, model: Model) -> None:
        self._model, self.dtype, self.max_model_len = model, model.dtype, model.max_model_len
        self.width = model.hidden_size if isinstance(model, Decoder) else 0
        self.begin_step, self.logits = model.begin_step, model.logits

    def follow(self, batch: ForwardBatch, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """As Guesser has it; beyond the draft's longest sequence, states mean nothing."""
        batch.positions = batch.positions.clamp_max(self.max_model_len - 1)
        return self._model.forward(batch)

    extend = follow
