"""Block diffusion whose canvases are drawn anew by each pass, as in DiffusionGemma.

A canvas begins behind the known tokens, wherever that is, with random tokens. In a pass its tokens see each other and all known
ones, which see only what is before them. The pass draws a token for each place; the surest are taken into the canvas of the next
pass, as far as the sum of their entropies without the largest of them stays within a bound, and random tokens go to the others.
What the model says in a pass it reads again in the next. When its most probable tokens stay the same, and it is sure of them, or
after as many passes as there may be, they are the output, all at once.
Sources: Ben-Hamu et al., EB-Sampler, arXiv 2505.24857 (the bound); Chen et al., Analog Bits, arXiv 2208.04202 (what is read again).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from .diffusion import Denoising
from .request import FAILED_ROW, Canvas, Request
from .step import StepOutput

_SEED_BITS = 2**64 - 1


@dataclass(frozen=True)
class Redraws:
    """How a model draws a canvas anew.

    max_passes             over one canvas
    coldest, hottest       the temperature falls from ``hottest`` in the first pass towards ``coldest``
    entropy_bound          in nats: of the tokens that a pass takes
    num_stable             passes before one whose most probable tokens were the same, for it to be the last
    mean_entropy           in nats: of a canvas whose last pass may be over is less
    """

    max_passes: int
    coldest: float
    hottest: float
    entropy_bound: float
    num_stable: int
    mean_entropy: float

    def heat(self, num_passes: np.ndarray) -> np.ndarray:
        """float32: the temperatures of canvases that so many passes went over."""
        left = ((self.max_passes - num_passes) / self.max_passes).astype(np.float32)
        return np.float32(self.hottest - self.coldest) * left + np.float32(self.coldest)


class Redrawing(Denoising):
    """How the requests of one engine are stepped where the model draws its canvases anew. A request that loses its seat loses its
    canvas, whose passes then are repeated."""

    def __init__(self, canvas_size: int, vocab_size: int, redraws: Redraws) -> None:
        self.canvas_size, self._vocab_size, self._redraws = canvas_size, vocab_size, redraws

    def end(self, num_tokens: int) -> int:
        return num_tokens + self.canvas_size

    def fit(self, request: Request, first: int, count: int) -> int:
        return count if first + count >= self.end(request.num_tokens) else min(count, request.num_tokens - first)

    def tokens(self, request: Request, first: int, end: int) -> list[int]:
        known = request.token_ids
        if end <= len(known):
            return known[first:end]
        if request.canvas is None:
            request.canvas = Canvas(self._random(request, 0), deque(maxlen=self._redraws.num_stable))
        return known[first:] + request.canvas.tokens

    def settle(self, request: Request, output: StepOutput, part: slice) -> list[int]:
        found, best = output.token_ids[part], output.best[part]
        if FAILED_ROW in found:
            return [FAILED_ROW]
        if (canvas := request.canvas) is None:  # it was lost since
            return []
        canvas.num_passes += 1
        entropy = np.array(output.entropies[part], dtype=np.float32)
        is_stable = len(canvas.best) == self._redraws.num_stable and all(before == best for before in canvas.best)
        canvas.best.append(best)
        if canvas.num_passes == self._redraws.max_passes or (is_stable and entropy.mean() < np.float32(self._redraws.mean_entropy)):
            request.canvas = None
            if request.params.logprobs is not None:
                start = len(request.token_ids) - part.start
                request.told = {start + index: output.logprobs[index] for index in range(part.start, part.stop)}
            return best
        surest = np.argsort(entropy, kind="stable")
        sums = np.cumsum(entropy[surest], dtype=np.float64).astype(np.float32)
        canvas.tokens = self._random(request, canvas.num_passes)
        for place in surest[sums - entropy[surest] <= np.float32(self._redraws.entropy_bound)].tolist():
            canvas.tokens[place] = found[place]
        return []

    def _random(self, request: Request, num_passes: int) -> list[int]:
        """A function of the request's seed, the place of the canvas and how many passes went over it."""
        assert request.params.seed is not None, "the engine gives every request a seed"
        counter = len(request.token_ids) << 64 | num_passes
        drawn = np.random.Generator(np.random.Philox(key=request.params.seed & _SEED_BITS, counter=counter << 128))
        tokens: list[int] = drawn.integers(self._vocab_size, size=self.canvas_size).tolist()
        return tokens
