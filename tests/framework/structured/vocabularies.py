"""The embedded model's tokenizer as backends see it, and outputs followed through matchers."""

from __future__ import annotations

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


def allowed(matcher: Matcher, size: int = SIZE) -> set[int]:
    """Tokens of the next mask, those beyond the vocabulary included."""
    mask = np.zeros(-(-size // 32), dtype=np.int32)
    matcher.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def accepts(found: Grammar, text: str) -> bool:
    """Whether a text is an output: at each place by the longest token that the mask allows there."""
    matcher, rest = found.matcher([EOS]), text.encode()
    while rest:
        next_tokens = [token for token in allowed(matcher) if PIECES[token] and rest.startswith(PIECES[token])]
        if not next_tokens:
            return False
        token = max(next_tokens, key=lambda token: len(PIECES[token]))
        matcher.accept(token)
        rest = rest[len(PIECES[token]) :]
    return EOS in allowed(matcher)
