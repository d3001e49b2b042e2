"""llguidance: Earley parser over lexemes by derivatives. Compiles in microseconds to milliseconds, because masks are computed when
they are needed; refuses the keywords of JSON schema that it does not implement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...bitmask import num_words, set_bits
from ..schema import close_objects
from ..spec import GrammarSpec
from .protocol import MAX_WHITESPACE, Vocabulary


class LlguidanceBackend:
    """Regexes are those of Rust's crate ``regex``, grammars Lark's with the library's extensions, or of llama.cpp."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance.hf import from_tokenizer

        num_tokens = max(vocabulary.size, len(vocabulary.tokenizer))
        try:
            self._tokenizer = from_tokenizer(vocabulary.tokenizer, num_tokens, list(vocabulary.eos_token_ids))
        except Exception as error:
            raise ValueError(f"llguidance cannot work with this model's tokenizer: {error}") from error
        self._num_words = num_words(num_tokens)

    def compile(self, spec: GrammarSpec) -> LlguidanceGrammar:
        from llguidance import LLMatcher

        if spec.kind not in _GRAMMARS:
            raise ValueError(f"llguidance has no {spec.kind}: choose structured_outputs.backend=xgrammar, or auto")
        matcher = LLMatcher(self._tokenizer, _GRAMMARS[spec.kind](spec), log_level=0)
        if matcher.is_error():
            reason = _first_lines(matcher.get_error())
            if reason.startswith("Resource "):  # that a schema refers to
                reason = f"$schema or $ref: {reason}"
            raise ValueError(f"{spec.kind} cannot be compiled: {reason}")
        return LlguidanceGrammar(matcher, self._num_words, self._tokenizer.eos_token)


class LlguidanceGrammar:
    """A matcher at its beginning, of which others are copies."""

    num_bytes = 0  # the library does not tell

    def __init__(self, start: Any, num_words: int, eos_token_id: int) -> None:
        self._start, self._num_words, self._eos_token_id = start, num_words, eos_token_id

    def matcher(self, stop_token_ids: Sequence[int]) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._start.deep_copy(), self._num_words, self._eos_token_id, stop_token_ids)


class LlguidanceMatcher:
    """The library knows one set of end tokens for all; here each request has its own."""

    def __init__(self, matcher: Any, num_words: int, eos_token_id: int, stop_token_ids: Sequence[int]) -> None:
        self._matcher, self._eos_token_id = matcher, eos_token_id
        self._words = np.zeros(num_words, dtype=np.int32)
        self._address, self._num_bytes = self._words.ctypes.data, self._words.nbytes
        self._others: np.ndarray | None = None
        if set(stop_token_ids) != {eos_token_id}:
            self._stops = np.zeros(num_words, dtype=np.int32)
            set_bits(self._stops, {*stop_token_ids, eos_token_id}, True)
            self._others = ~self._stops

    def fill(self, mask: np.ndarray) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._address, self._num_bytes)
        self._check()
        if self._others is not None:
            ends = self._words[self._eos_token_id // 32] >> self._eos_token_id % 32 & 1
            self._words &= self._others
            if ends:
                self._words |= self._stops
        mask[:] = self._words[: len(mask)]

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _first_lines(self._matcher.get_error())
            kind = RuntimeError if "doesn't satisfy" in reason else ValueError  # else a limit of the library
            raise kind(f"the grammar failed: {reason}")


def _json(spec: GrammarSpec) -> str:
    from llguidance import LLMatcher

    schema = json.loads(spec.text)
    schema = {} if schema is True else schema
    # The schema may not change how strictly it is read.
    options: Any = {"lenient": False, "coerce_one_of": False, "whitespace_flexible": spec.any_whitespace}
    if spec.any_whitespace:
        options["whitespace_pattern"] = rf"[ \n\r\t]{{0,{MAX_WHITESPACE}}}"
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema if spec.additional_properties else close_objects(schema)), overrides=options
    )


def _regex(spec: GrammarSpec) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(spec.text)


def _choice(spec: GrammarSpec) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(
        "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(spec.text))
    )


def _grammar(spec: GrammarSpec) -> str:
    from llguidance import grammar_from

    return grammar_from("grammar", spec.text)  # of either notation


_GRAMMARS = {"json": _json, "regex": _regex, "choice": _choice, "grammar": _grammar}


def _first_lines(text: str) -> str:
    """Without the state of the parser that follows."""
    return text.split("<state>")[0].strip()
