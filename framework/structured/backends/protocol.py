"""What a library of grammars is to the rest of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..spec import GrammarSpec

MAX_WHITESPACE = 16
"""Characters of white space between two parts of JSON: without a bound a model may write them until its tokens are used up."""


@dataclass(frozen=True)
class Vocabulary:
    """Of a model: its tokenizer, its number of logits (which may be more than the tokenizer has tokens, or fewer), and the tokens
    that end a sequence."""

    tokenizer: Any
    size: int
    eos_token_ids: tuple[int, ...]


class Matcher(Protocol):
    """Follows the tokens of one completion."""

    def fill(self, mask: np.ndarray) -> None:
        """Sets the bits of the tokens that may come next in int32 [ceil(V/32)], bit t%32 of word t//32: never those of special
        tokens or beyond the vocabulary; those of the stop tokens where the output may end. Raises ValueError for a
        grammar that is too much for the library."""

    def accept(self, token_id: int) -> None:
        """Takes the next token, which does not end the output. Raises RuntimeError for one that does not fit, ValueError as
        ``fill``."""


class Grammar(Protocol):
    """A compiled constraint, of which any number of requests make their matchers.

    num_bytes  of memory, about; 0 = not known
    """

    num_bytes: int

    def matcher(self, stop_token_ids: Sequence[int]) -> Matcher:
        """stop_token_ids: end an output where the constraint allows an end, and may be no part of it."""


class Backend(Protocol):
    """Compiles for one vocabulary; called from several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Raises ValueError for what cannot be compiled as it was meant, naming the part."""
