"""From pooled hidden states to what users get: projections, classifiers, normalization, probabilities. All in float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...plan import BoundKernel
from ...pooling_params import TOKEN_TASKS, PoolingParams
from .settings import Pooling

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
}
_LEAST_LENGTH = 1e-12
"""Of a vector that is divided by its length."""


@dataclass(frozen=True)
class Layer:
    """A HeadLayer, bound: norm(activation(linear(x)))."""

    linear: BoundKernel | None
    activation: Callable[[torch.Tensor], torch.Tensor]
    norm: BoundKernel | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x f32 [R, in] -> [R, out]."""
        if self.linear is not None:
            x = self.linear(x)
        x = self.activation(x)
        return x if self.norm is None else self.norm(x, None)


class Heads:
    """What comes after pooling. layers: of the projection, or of the classifier."""

    def __init__(self, pooling: Pooling, layers: Sequence[Layer]) -> None:
        self.pooling, self._layers = pooling, layers

    def __call__(self, states: torch.Tensor, params: Sequence[PoolingParams]) -> list[torch.Tensor]:
        """states f32 [R, H], of a row each -> f32 [D] each, as their parameters ask."""
        found: dict[int, torch.Tensor] = {}
        together: defaultdict[tuple[int | None, bool], list[int]] = defaultdict(list)
        for row, each in enumerate(params):
            together[each.dimensions, bool(each.use_activation)].append(row)
        x = self._apply(states)
        for (dimensions, active), rows in together.items():
            part = x if len(rows) == len(params) else x[rows]
            found.update(zip(rows, self._finish(part[:, :dimensions], active)))
        return [found[row] for row in range(len(params))]

    def tokens(self, states: torch.Tensor, params: PoolingParams, token_ids: torch.Tensor) -> torch.Tensor:
        """states f32 [T, H] of a prompt's tokens, token_ids int64 [T] -> f32 [T', D]: of all, or of those that end a step."""
        x = self._apply(states)
        if params.returned_token_ids is not None:
            x = x[:, params.returned_token_ids]
        if self.pooling.kind == "STEP" and params.step_tag_id is not None:
            x = x[token_ids == params.step_tag_id]
        return self._finish(x[:, : params.dimensions], bool(params.use_activation))

    def takes_tokens(self, params: PoolingParams) -> bool:
        """Whether a request wants something of every token."""
        return params.task in TOKEN_TASKS

    def _apply(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self._layers:
            x = layer(x)
        return x

    def _finish(self, x: torch.Tensor, active: bool) -> torch.Tensor:
        """Through float64, so that no rounding depends on how many rows there are."""
        x = x.double()
        if active and self.pooling.num_labels:
            kind = self.pooling.activation
            x = x.softmax(-1) if kind == "softmax" else x.sigmoid() if kind == "sigmoid" else x
        elif active:
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(_LEAST_LENGTH)
        return x.float()
