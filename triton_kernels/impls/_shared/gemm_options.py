"""What the GEMMs with quantized weights have in common: their launch configuration, and how options and tables change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...tuning import NOT_TUNED, Tuned

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
    """Launch configuration of one GEMM: tokens and weight rows of a tile, and the splits of K. ``block_n`` is 64 or 128
    (with scaled activations any power of two up to 128)."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    split_k: int


class GemmOptions:
    """Options and tables of one bound GEMM, laid over the configuration of a call."""

    def __init__(self, options: Mapping[str, int], tuned: Tuned = NOT_TUNED) -> None:
        self.tuned = tuned
        self.fixed = {name: value for name, value in options.items() if value}

    def apply(self, config: Config, num_tokens: int) -> Config:
        return config._replace(**{**self.tuned.at(num_tokens), **self.fixed})


def worth_trying(options: Mapping[str, int], num_tokens: int) -> bool:
    """Whether options can be any good: no block of tokens far beyond the tokens, K split for few tokens only."""
    return options["block_m"] < 2 * max(num_tokens, 16) and (options["split_k"] == 1 or num_tokens <= 64)
