"""What is kept of prompts whose hidden states come in parts: one state, a sum, or all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from ...engine.step import NewRequest
from ...models.pooling.settings import PoolingType
from ...pooling_params import TOKEN_TASKS, PoolingParams
from ..step_rows import StepRows

Kept = torch.Tensor | None


class States:
    """By seat, from a request's first step to its last. kind: how the model pools."""

    def __init__(self, kind: PoolingType) -> None:
        self._kind = kind
        self._kept: dict[int, Kept] = {}
        self.params: dict[int, PoolingParams] = {}

    def admit(self, new: Iterable[NewRequest]) -> None:
        """Forgets what was in their seats."""
        for request in new:
            assert request.pooling is not None, "an engine that pools takes nothing else"
            self.params[request.seat] = request.pooling
            self._kept[request.seat] = None

    def take(self, rows: StepRows, hidden: torch.Tensor) -> None:
        """Takes the states [T, H] of a step's rows."""
        bounds = rows.bounds.tolist()
        for row, seat in enumerate(rows.seats.tolist()):
            params, start = self.params[seat], bounds[row]
            kind = "ALL" if params.task in TOKEN_TASKS else self._kind
            if kind == "MEAN":
                start += params.num_unpooled  # of prompts that are computed whole
            self._kept[seat] = _TAKE[kind](self._kept[seat], hidden[start : bounds[row + 1]])

    def pop(self, seat: int, num_tokens: int) -> torch.Tensor:
        """Of a prompt of so many tokens that is computed: f32 [H], or [T, H] of all its tokens."""
        kept = self._kept.pop(seat)
        assert kept is not None
        if self._kind == "MEAN" and kept.dim() == 1:
            kept = kept / (num_tokens - self.params[seat].num_unpooled)
        return kept.float()


def _sum(kept: Kept, states: torch.Tensor) -> torch.Tensor:
    """In float64, so that the mean does not depend on where a prompt was cut."""
    total = states.sum(0, dtype=torch.float64)
    return total if kept is None else kept + total


def _all(kept: Kept, states: torch.Tensor) -> torch.Tensor:
    return states.clone() if kept is None else torch.cat((kept, states))


_TAKE: Mapping[str, Callable[[Kept, torch.Tensor], torch.Tensor]] = {
    "CLS": lambda kept, states: states[0].clone() if kept is None else kept,
    "LAST": lambda kept, states: states[-1].clone(),
    "MEAN": _sum,
    "ALL": _all,
    "STEP": _all,
}
