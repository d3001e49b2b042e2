"""Block diffusion: tokens come canvas by canvas, and those of a canvas in any order. A canvas is what these models call a block, of
which the KV cache has others.

A pass computes the canvas behind the last whole one, with masks where nothing is settled yet. In it tokens see all of their own
canvas and of those before. It settles the tokens that the model is sure of; what is settled without a gap behind the known ones is
output. The pass that begins the next canvas computes a whole one once more, whose keys and values are final then.
Sources: Arriola et al., Block Diffusion, arXiv 2503.09573; Wu et al., Fast-dLLM, arXiv 2505.22618 (settling by confidence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config_checks import require, section_of
from .request import FAILED_ROW, Request
from .step import TokenLogprobs


@dataclass
class DiffusionConfig:
    """How a model of block diffusion settles the tokens of a canvas; no other model reads it.

    threshold   a token is settled once the model gives it more than this probability, whatever the temperature; where no token has
                it, the most probable is settled all the same. 1 = one after the other, 0 = all in the first pass
    max_passes  over one canvas: each pass settles as many tokens, at least, as it takes to get by with them; 0 = as many as a
                canvas has tokens
    """

    threshold: float = 0.95
    max_passes: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DiffusionConfig:
        """Of a mapping of its fields."""
        return section_of(cls, "diffusion_config", given, "diffusion.")

    def validate(self) -> None:
        """Raises ValueError as ``EngineConfig.validate`` does."""
        require(0 <= self.threshold <= 1, "diffusion.threshold", self.threshold, "a probability, from 0 to 1")
        require(self.max_passes >= 0, "diffusion.max_passes", self.max_passes, "0 (as many as a canvas has tokens) or more")


class Denoising:
    """How the requests of one engine are stepped where the model denoises. canvas_size: tokens of a canvas, which begins at a
    multiple of it. A step is committed before the next is scheduled, so that all tokens of a request are known."""

    def __init__(self, canvas_size: int, mask_token_id: int, config: DiffusionConfig) -> None:
        self.canvas_size, self._mask = canvas_size, mask_token_id
        self._threshold = math.log(config.threshold) if config.threshold else -math.inf
        self._least = -(-canvas_size // (config.max_passes or canvas_size))

    def end(self, num_tokens: int) -> int:
        """The place behind the canvas that the token after so many stands in."""
        return (num_tokens // self.canvas_size + 1) * self.canvas_size

    def fit(self, request: Request, first: int, count: int) -> int:
        """As many of ``count`` tokens, from the ``first`` that is not computed on, as leave no canvas in parts."""
        return count // self.canvas_size * self.canvas_size

    def tokens(self, request: Request, first: int, end: int) -> list[int]:
        """Those of a request at these places, and what stands for those that are not settled."""
        known, settled = request.token_ids, request.settled
        found = [known[place] for place in range(first, min(end, len(known)))]
        later = range(max(first, len(known)), end)
        return found + [settled[place].token_id if place in settled else self._mask for place in later]

    def settle(
        self, request: Request, found: Sequence[int], logprobs: Sequence[TokenLogprobs], entropies: Sequence[float] = ()
    ) -> list[TokenLogprobs]:
        """Takes what a pass found for the places behind a request's known tokens: a token each, and what the model says of it, or,
        where it draws canvases anew, of its most probable one, and the entropy. Returns the tokens that are output now, those
        without a gap; FAILED_ROW alone if a place has none."""
        start, settled = len(request.token_ids), request.settled
        masked = [index for index in range(len(found)) if start + index not in settled]
        if any(found[index] == FAILED_ROW for index in masked):
            return [TokenLogprobs(FAILED_ROW, math.nan, 0, [], [])]
        ranked = sorted(masked, key=lambda index: -logprobs[index].logprob)  # stable: of equals the first
        for rank, index in enumerate(ranked):
            if rank < self._least or logprobs[index].logprob > self._threshold:
                settled[start + index] = logprobs[index]
        new: list[TokenLogprobs] = []
        while start + len(new) in settled:
            new.append(settled.pop(start + len(new)))
        return new
