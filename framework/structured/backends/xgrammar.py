"""xgrammar: pushdown automata with masks computed ahead, for what of them depends on the automaton's state alone. Compiles in
milliseconds to seconds. It passes over parts of a JSON schema that it cannot express, so only others are given to it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...bitmask import num_words, set_bits
from ..schema import close_objects, first_inexact
from ..spec import GrammarSpec
from .protocol import MAX_WHITESPACE, Vocabulary

_NO_WHITESPACE = {"any_whitespace": False, "separators": (",", ":")}


class XgrammarBackend:
    """Regexes are those of ECMAScript without look-around, grammars EBNF as of llama.cpp, or Lark's."""

    is_bounded = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        from xgrammar import GrammarCompiler, TokenizerInfo

        try:
            info = TokenizerInfo.from_huggingface(
                vocabulary.tokenizer, vocab_size=vocabulary.size, stop_token_ids=list(vocabulary.eos_token_ids)
            )
        except Exception as error:
            raise ValueError(f"xgrammar cannot work with this model's tokenizer: {error}") from error
        self._compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._size = vocabulary.size
        added = vocabulary.tokenizer.added_tokens_decoder.items()
        self._special = {token: found.content for token, found in added if found.special and token < vocabulary.size}

    def compile(self, spec: GrammarSpec) -> XgrammarGrammar:
        try:
            compiled = self._compile(spec)
        except RuntimeError as error:
            raise ValueError(f"{spec.kind} cannot be compiled: {_without_place(str(error))}") from None
        tagged = spec.text if spec.kind == "structural_tag" else ""  # tags may be special tokens
        special = [token for token, text in self._special.items() if text not in tagged]
        return XgrammarGrammar(self, compiled, self._text_words(special))

    def accept(self, matchers: Sequence[XgrammarMatcher], token_ids: Sequence[Sequence[int]]) -> None:
        for matcher, tokens in zip(matchers, token_ids):
            for token in tokens:
                if not matcher.state.accept_token(token):
                    matcher.error = matcher.error or RuntimeError(f"the grammar failed: token {token} does not fit")

    def forced(self, matchers: Sequence[XgrammarMatcher]) -> list[list[int]]:
        return [[] for _ in matchers]  # the library knows the text, not its tokens

    def fill(self, matchers: Sequence[XgrammarMatcher], drafts: Sequence[Sequence[int]], masks: np.ndarray, is_short: bool) -> None:
        row = 0
        for matcher, draft in zip(matchers, drafts):
            matcher.fill(masks[row : row + 1 + len(draft)], draft)
            row += 1 + len(draft)

    def _text_words(self, special: list[int]) -> np.ndarray:
        """A mask of all tokens but these: to the library a special token is the text that it is written as."""
        words = np.full(num_words(self._size), -1, dtype=np.int32)
        set_bits(words, [*special, *range(self._size, 32 * len(words))], False)
        return words

    def _compile(self, spec: GrammarSpec) -> Any:
        compiler = self._compiler
        if spec.kind == "json":
            schema = close_objects(json.loads(spec.text))
            if (found := first_inexact(schema)) is not None:
                raise ValueError(
                    f"json: xgrammar would not hold an output to {found}: leave it out, or choose "
                    "structured_outputs.backend=llguidance"
                )
            spaces: Any = {"max_whitespace_cnt": MAX_WHITESPACE} if spec.any_whitespace else _NO_WHITESPACE
            return compiler.compile_json_schema(json.dumps(schema), strict_mode=False, **spaces)
        if spec.kind == "regex":
            return compiler.compile_regex(spec.text)
        if spec.kind == "choice":
            return compiler.compile_grammar("root ::= " + " | ".join(_quoted(text) for text in json.loads(spec.text)))
        if spec.kind == "structural_tag":
            return compiler.compile_structural_tag(spec.text)
        return compiler.compile_grammar(spec.text) if "::=" in spec.text else compiler.compile_lark(spec.text)


class XgrammarGrammar:
    """One automaton for all requests."""

    def __init__(self, backend: XgrammarBackend, compiled: Any, text_words: np.ndarray) -> None:
        self._backend, self._compiled, self._text_words = backend, compiled, text_words
        self.num_bytes = compiled.memory_size_bytes

    def matcher(self, stop_token_ids: Sequence[int]) -> XgrammarMatcher:
        from xgrammar import GrammarMatcher

        words = self._text_words.copy()
        set_bits(words, stop_token_ids, True)
        state = GrammarMatcher(self._compiled, override_stop_tokens=list(stop_token_ids))
        return XgrammarMatcher(self._backend, state, words, frozenset(stop_token_ids))


class XgrammarMatcher:
    """The library's own, ``state``, with special tokens left out. words int32 [ceil(V/32)]: what may come at all."""

    def __init__(self, backend: XgrammarBackend, state: Any, words: np.ndarray, stops: frozenset[int]) -> None:
        self.backend, self.state = backend, state
        self.error: Exception | None = None
        self._words, self._stops = words, stops

    def fill(self, masks: np.ndarray, draft: Sequence[int]) -> None:
        """masks int32 [1 + drafts, words] as ``Backend.fill`` has it."""
        num_taken = 0
        self._fill_one(masks[0])
        for token in draft:
            if token in self._stops or not self._may_come(token) or not self.state.accept_token(token):
                break
            num_taken += 1
            self._fill_one(masks[num_taken])
        if num_taken:
            self.state.rollback(num_taken)

    def _fill_one(self, mask: np.ndarray) -> None:
        own = mask[: len(self._words)]
        self.state.fill_next_token_bitmask(own[None])
        own &= self._words

    def _may_come(self, token: int) -> bool:
        return bool(self._words[token // 32] >> token % 32 & 1)


def _quoted(text: str) -> str:
    """In EBNF."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08X}" for c in text) + '"'


def _without_place(text: str) -> str:
    """What the library says, without the time and its source line."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text).strip()
