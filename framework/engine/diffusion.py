"""Block diffusion: tokens come canvas by canvas, and those of a canvas in any order. A canvas is what these models call a block, of
which the KV cache has others.

A pass computes the canvas behind the last whole one, with masks where nothing is settled yet. In it tokens see all of their own
canvas and of those before. It settles the tokens that the model is sure of; what is settled without a gap behind the known ones is
output. The pass that begins the next canvas computes a whole one once more, whose keys and values are final then.
Sources: Arriola et al., Block Diffusion, arXiv 2503.09573; Wu et al., Fast-dLLM, arXiv 2505.22618 (settling by confidence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from ..config_checks import require, section_of
from .request import FAILED_ROW, Request
from .step import StepOutput


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

    def least(self, canvas_size: int) -> int:
        """Tokens that a pass settles, at least, as long as there are so many."""
        return -(-canvas_size // (self.max_passes or canvas_size))

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
        self._least = config.least(canvas_size)

    def end(self, num_tokens: int) -> int:
        """The place behind the canvas that the token after so many stands in."""
        return (num_tokens // self.canvas_size + 1) * self.canvas_size

    def fit(self, request: Request, first: int, count: int) -> int:
        """As many of ``count`` tokens, from the ``first`` that is not computed on, as leave no canvas in parts."""
        return count // self.canvas_size * self.canvas_size

    def tokens(self, request: Request, first: int, end: int) -> list[int]:
        """Those of a request at these places, and what stands for those that are not settled."""
        known = request.token_ids
        if end <= len(known):
            return known[first:end]
        if not request.settled:
            request.settled = [self._mask] * (end - len(known))
        return known[first:] + request.settled

    def settle(self, request: Request, output: StepOutput, part: slice) -> list[int]:
        """Takes what a pass found for the places behind a request's known tokens, ``part`` of what a step returned. Returns the
        tokens that are output now, those without a gap; FAILED_ROW alone if a place has none. Log-probabilities that the request
        asked for are in ``Request.told`` then."""
        settled, tokens, confidences = request.settled, output.token_ids[part], output.confidences[part]
        masked = [index for index, token in enumerate(settled) if token == self._mask]
        if FAILED_ROW in tokens and any(tokens[index] == FAILED_ROW for index in masked):
            return [FAILED_ROW]
        sure = [index for index in masked if confidences[index] > self._threshold]
        if len(sure) < self._least:
            sure = nlargest(self._least, masked, key=confidences.__getitem__)  # of equals the first
        for index in sure:
            settled[index] = tokens[index]
        if request.params.logprobs is not None:
            start = len(request.token_ids)
            request.told |= {start + index: output.logprobs[part.start + index] for index in sure}
        count = settled.index(self._mask) if self._mask in settled else len(settled)
        new, request.settled = settled[:count], settled[count:]
        return new
