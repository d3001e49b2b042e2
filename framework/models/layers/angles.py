"""Angles of tokens with three positions, of models whose kernels rotate by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class MixedAngles:
    """A table of cos and sin, f32 [first + room, rotary_dim], whose rows from ``first`` on belong to the tokens of a step that have
    three positions: where they are equal, as those of text are, a row of single positions does. So kernels take one position a
    token, whatever the model. axes: int64 [rotary_dim / 2], by which of the three each pair turns."""

    table: torch.Tensor
    first: int
    axes: torch.Tensor

    def fill(self, positions: torch.Tensor) -> None:
        """positions int64 [3, M]."""
        half = len(self.axes)
        rows, pairs = positions[self.axes].T, torch.arange(half, device=positions.device)
        own = self.table[self.first : self.first + positions.shape[1]]
        own[:, :half] = self.table[rows, pairs]
        own[:, half:] = self.table[rows, pairs + half]
