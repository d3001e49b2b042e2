"""What the GEMMs with quantized weights have in common: their launch configuration, and how options and tables change it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from ...tuning import Tuned

OPTIONS: Mapping[str, int] = {"block_m": 0, "block_n": 0, "num_warps": 0, "num_stages": 0, "split_k": 0}
"""Options set to 0 follow the tuned tables where they know a shape like this, and the kernel's ``launch_config`` elsewhere."""

TUNE_SPACE: Mapping[str, tuple[int, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_n": (64, 128),
    "num_warps": (4, 8),
    "num_stages": (3, 4, 5, 6),
    "split_k": (1, 2, 4, 8),
}


class Config(NamedTuple):
    """Launch configuration of one GEMM: tokens and weight rows of a tile, and the splits of K. ``block_n`` is 64, 128 or 256
    (with scaled activations any power of two; where blocks have scales up to 128)."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    split_k: int


class Gemm(ABC):
    """A bound GEMM that is launched by the number of tokens. ``options`` and ``tuned`` are laid over its own configuration."""

    tuned_by_tokens = True

    def __init__(self, tuned: Tuned, options: Mapping[str, int]) -> None:
        self.tuned = tuned
        self.fixed = {name: value for name, value in options.items() if value}

    @abstractmethod
    def config(self, num_tokens: int) -> Config:
        """Its own configuration for ``num_tokens`` rows."""

    def launch(self, num_tokens: int) -> Config:
        return self.config(num_tokens)._replace(**{**self.tuned.at(num_tokens), **self.fixed})

    def invariant_launch(self) -> Config:
        """One tile shape and one order of K for any number of tokens; narrow, so that few tokens have many programs."""
        return self.config(64)._replace(block_n=64, num_warps=4, split_k=1)

    @staticmethod
    def tune_filter(options: Mapping[str, int], num_tokens: int) -> bool:
        """Whether options can be any good: no block of tokens far beyond the tokens, K split for few tokens only."""
        return options["block_m"] < 2 * max(num_tokens, 16) and (options["split_k"] == 1 or num_tokens <= 64)
