"""Layers with two sets of weights, of which tokens of images take one and all others the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..batch import ExpertTokens


@dataclass(slots=True)
class VisualStep:
    """What all such layers of a model look at. tokens: of this step; None: none takes the weights of images."""

    tokens: ExpertTokens | None = None


@dataclass(slots=True)
class VisualExpert:
    """Both are linear layers, or MLPs. A step without images computes what it would without visual experts; else each computes its
    own tokens alone."""

    language: Callable[[torch.Tensor], torch.Tensor]
    vision: Callable[[torch.Tensor], torch.Tensor]
    step: VisualStep

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H']."""
        if (tokens := self.step.tokens) is None:
            return self.language(x)
        seen = self.vision(x[tokens.vision])
        if not len(tokens.language):
            return seen
        out = seen.new_empty(len(x), seen.shape[1])
        return out.index_copy_(0, tokens.vision, seen).index_copy_(0, tokens.language, self.language(x[tokens.language]))
