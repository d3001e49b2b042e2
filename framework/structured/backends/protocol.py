"""What a library of grammars is to the rest of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ...bitmask import num_words
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

    @property
    def num_words(self) -> int:
        """Of a mask: it has bits for the tokens of the model and of the tokenizer."""
        return num_words(max(self.size, len(self.tokenizer)))


class Matcher(Protocol):
    """Follows the tokens of one completion; its backend moves it. error: why it cannot go on: RuntimeError for a token that did not
    fit, ValueError for a grammar that is too much for the library."""

    backend: Backend
    error: Exception | None


class Grammar(Protocol):
    """A compiled constraint, of which any number of requests make their matchers.

    num_bytes  of memory, about; 0 = not known
    """

    num_bytes: int

    def matcher(self, stop_token_ids: Sequence[int]) -> Matcher:
        """stop_token_ids: end an output where the constraint allows an end, and may be no part of it."""


M = TypeVar("M", bound=Matcher, contravariant=True)


class Backend(Protocol[M]):
    """Compiles for one vocabulary, called from several threads; moves its matchers, many at once, called from one thread at a time.
    What goes wrong with a matcher is its ``error``.

    is_bounded  whatever the grammar, a matcher's part of a call takes a fraction of a second; else it may take minutes
    """

    is_bounded: bool

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Raises ValueError for what cannot be compiled as it was meant, naming the part."""

    def accept(self, matchers: Sequence[M], token_ids: Sequence[Sequence[int]]) -> None:
        """Each takes its next tokens, which do not end the output."""

    def forced(self, matchers: Sequence[M]) -> list[list[int]]:
        """Of each, tokens of the text that must come next, where there is but one; [] also where it is not known."""

    def fill(self, matchers: Sequence[M], drafts: Sequence[Sequence[int]], masks: np.ndarray, is_short: bool) -> None:
        """What may come next, and after each draft, if the tokens that a matcher takes next are those; it takes none of them.

        masks  int32 [matchers and drafts, ``Vocabulary.num_words``], all bits set: a matcher's own row, then those after its
               drafts, then the next matcher's. Left are the bits (t%32 of word t//32) of tokens t that may come next: never of
               special tokens or beyond the vocabulary; of the stop tokens where the output may end. Rows after a draft that may
               not come, or that ends the output, stay as they are.
        is_short  it will take less than to wake other threads for it"""
