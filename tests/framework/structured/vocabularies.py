"""The embedded model's tokenizer as backends see it, and outputs followed through matchers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import framework
from framework.engine.detokenizer import TokenTexts
from framework.engine.tokenizer import load_tokenizer
from framework.structured.backends.protocol import Grammar, Matcher, Vocabulary
from framework.structured.backends.table import BACKENDS
from framework.structured.spec import StructuredOutputsParams

TOKENIZER = load_tokenizer(Path(framework.__file__).parent / "assets" / "tiny")
SIZE, EOS = 2048, 1
PIECES: list[bytes] = TokenTexts(TOKENIZER)._bytes or []
"""Bytes of every token."""


def backend(name: str, size: int = SIZE) -> Any:
    return BACKENDS[name].load()(Vocabulary(TOKENIZER, size, (EOS,)))


def grammar(name: str, size: int = SIZE, **constraint: Any) -> Grammar:
    return backend(name, size).compile(StructuredOutputsParams(**constraint).spec())


def masks(matcher: Matcher, draft: Sequence[int] = (), num_words: int = SIZE // 32, is_short: bool = False) -> np.ndarray:
    """What may come next and after each draft, int32 [1 + drafts, words]. Raises the matcher's error."""
    found = np.full((1 + len(draft), num_words), -1, dtype=np.int32)
    matcher.backend.fill([matcher], [draft], found, is_short)
    if matcher.error is not None:
        raise matcher.error
    return found


def token_sets(found: np.ndarray) -> list[set[int]]:
    """The tokens in masks."""
    return [set(np.flatnonzero(row).tolist()) for row in np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")]


def allowed(matcher: Matcher, num_words: int = SIZE // 32) -> set[int]:
    """Tokens of the next mask."""
    return token_sets(masks(matcher, (), num_words))[0]


def accept(matcher: Matcher, *token_ids: int) -> None:
    """Raises the matcher's error."""
    matcher.backend.accept([matcher], [token_ids])
    if matcher.error is not None:
        raise matcher.error


def accepts(found: Grammar, text: str) -> bool:
    """Whether a text is an output: at each place by the longest token that the mask allows there."""
    matcher, rest = found.matcher([EOS]), text.encode()
    while rest:
        next_tokens = [token for token in allowed(matcher) if PIECES[token] and rest.startswith(PIECES[token])]
        if not next_tokens:
            return False
        token = max(next_tokens, key=lambda token: len(PIECES[token]))
        accept(matcher, token)
        rest = rest[len(PIECES[token]) :]
    return EOS in allowed(matcher)
