"""Where prompts come from. Everything is a pure function of its arguments: request i does not depend on how many follow."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...corpus import load_corpus, stdlib_root
from .traces import MOONCAKE_BLOCK_TOKENS

Encode = Callable[[str], list[int]]
"""Text -> token ids, special tokens as the model wants them."""

# Streams of random numbers, so that changing one part of a workload leaves the others as they are.
LENGTHS, PROMPTS, PREFIX, BLOCKS, ARRIVALS, THINK, SEEDS, STAND_IN, PRIORITIES, ADAPTERS, DECODERS = range(11)
IMAGES, IMAGE_SIZES, IMAGE_PLACES = range(11, 14)


def stream(seed: int, kind: int, index: int = 0) -> np.random.Generator:
    """An independent random stream for one purpose and one request."""
    return np.random.default_rng((seed, kind, index))


def random_tokens(num_tokens: int, vocab_size: int, rng: np.random.Generator) -> list[int]:
    """Token ids, uniform over the vocabulary."""
    return rng.integers(0, vocab_size, num_tokens).tolist()


def block_tokens(block_ids: Sequence[int], num_tokens: int, scale: float, vocab_size: int, seed: int) -> list[int]:
    """A prompt made of named blocks: equal names give equal tokens, so that a trace's shared prefixes are real."""
    ends = [max(1, round(MOONCAKE_BLOCK_TOKENS * scale * (i + 1))) for i in range(len(block_ids))]
    if not ends or ends[-1] < num_tokens:
        raise ValueError(
            f"the trace names {len(block_ids)} blocks of {MOONCAKE_BLOCK_TOKENS} tokens for a longer prompt "
            f"({num_tokens} tokens after scaling)"
        )
    tokens: list[int] = []
    for block_id, end in zip(block_ids, ends):
        tokens += random_tokens(end - len(tokens), vocab_size, stream(seed, BLOCKS, block_id))
    return tokens[:num_tokens]


class Source:
    """Where prompts come from: an entry of SOURCES.

    offers           what, in a line
    needs_tokenizer  makes tokens of texts
    needs_path       the requests are those of a file; tokens are made only where it records none
    """

    offers: ClassVar[str]
    needs_tokenizer: ClassVar[bool] = False
    needs_path: ClassVar[bool] = False

    def __init__(self, vocab_size: int, encode: Encode | None) -> None:
        self.vocab_size, self.encode = vocab_size, encode

    def tokens(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        """``num_tokens`` token ids."""
        raise NotImplementedError


class RandomSource(Source):
    offers = "token ids, uniform over the vocabulary"

    def tokens(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        return random_tokens(num_tokens, self.vocab_size, rng)


class TraceSource(RandomSource):
    offers = "the requests of a file (workload.path, workload.format)"
    needs_path = True


class PythonSource(Source):
    """Prompts that end in the middle of real code: what the tiny model can complete."""

    offers = "prompts cut from the running interpreter's standard library"
    needs_tokenizer = True

    CHARS_PER_TOKEN = 8
    """More than any tokenizer of code averages, so that one cut is nearly always long enough."""

    @cached_property
    def _files(self) -> list[Path]:
        """The top-level modules of the running interpreter's standard library."""
        return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))

    def tokens(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        """``num_tokens`` tokens of source text from the start of a random line of a random module."""
        assert self.encode is not None, "checked by the caller"
        needed = num_tokens * self.CHARS_PER_TOKEN
        files = [path for path in self._files if path.stat().st_size > 2 * needed]
        if not files:
            raise ValueError(
                f"no module of the standard library is long enough for a prompt of {num_tokens} tokens; use workload.source=random"
            )
        while True:
            text = files[int(rng.integers(len(files)))].read_text(encoding="utf-8")
            start = text.find("\n", int(rng.integers(len(text) - needed))) + 1
            tokens = self.encode(text[start : start + needed])
            if len(tokens) >= num_tokens:
                return tokens[:num_tokens]


class HeldoutSource(PythonSource):
    """The tiny model knows nothing of them by heart: what is measured of its drafts is not flattered."""

    offers = "prompts cut from modules of the standard library that the embedded models were not trained on"

    @cached_property
    def _files(self) -> list[Path]:
        return [stdlib_root() / file.name for file in load_corpus().heldout]


SOURCES: dict[str, type[Source]] = {"random": RandomSource, "python": PythonSource, "heldout": HeldoutSource, "trace": TraceSource}
"""The table of sources; adding one is an entry. ``workload.source`` names them."""
