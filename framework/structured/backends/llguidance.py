"""llguidance: Earley parser over lexemes by derivatives. Compiles in microseconds to milliseconds, because masks are computed when
they are needed; refuses the keywords of JSON schema that it does not implement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ...bitmask import set_bits
from ..schema import close_objects
from ..spec import GrammarSpec
from .protocol import MAX_WHITESPACE, Vocabulary

_MAX_ITEMS_IN_ROW, _MAX_STEP_ITEMS, _MAX_LEXER_STATES = 800, 16_000, 50_000
"""Of one parser. With them no grammar was found of which a token takes 0.2 s, though with the library's own an ambiguous one takes
half a second and a lexer 500 MB; an object may have 200 optional properties."""

_WORDS = "[a-z ]{1,10}"
"""A slice of the vocabulary, whose tokens are allowed or not by one look where a constraint takes all such text. The library's own
are of JSON: without this one, every token of a regex is walked through."""


class LlguidanceBackend:
    """Regexes are those of Rust's crate ``regex``, grammars Lark's with the library's extensions, or of llama.cpp."""

    is_bounded = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLExecutor, LLParserLimits, LLTokenizer
        from llguidance.hf import from_tokenizer

        num_tokens = max(vocabulary.size, len(vocabulary.tokenizer))
        try:
            slices = [_WORDS, *LLTokenizer.general_slices()]
            self._tokenizer = from_tokenizer(vocabulary.tokenizer, num_tokens, list(vocabulary.eos_token_ids), slices)
        except Exception as error:
            raise ValueError(f"llguidance cannot work with this model's tokenizer: {error}") from error
        self._executor = LLExecutor()
        self._limits = LLParserLimits(
            max_items_in_row=_MAX_ITEMS_IN_ROW, step_max_items=_MAX_STEP_ITEMS, max_lexer_states=_MAX_LEXER_STATES
        )

    def compile(self, spec: GrammarSpec) -> LlguidanceGrammar:
        from llguidance import LLMatcher

        if spec.kind not in _GRAMMARS:
            raise ValueError(f"llguidance has no {spec.kind}: choose structured_outputs.backend=xgrammar, or auto")
        start = LLMatcher(self._tokenizer, _GRAMMARS[spec.kind](spec), log_level=0, limits=self._limits)
        if start.is_error():
            reason = _first_lines(start.get_error())
            if reason.startswith("Resource "):  # that a schema refers to
                reason = f"$schema or $ref: {reason}"
            raise ValueError(f"{spec.kind} cannot be compiled: {reason}")
        return LlguidanceGrammar(self, start, self._tokenizer.eos_token)

    def accept(self, matchers: Sequence[LlguidanceMatcher], token_ids: Sequence[Sequence[int]]) -> None:
        for matcher, tokens in zip(matchers, token_ids):  # a microsecond each: the library's threads would take longer to wake
            for token in tokens:
                if not matcher.state.consume_token(token):
                    matcher.fail()

    def forced(self, matchers: Sequence[LlguidanceMatcher]) -> list[list[int]]:
        return [list(takewhile(matcher.goes_on, matcher.state.compute_ff_tokens())) for matcher in matchers]

    def fill(
        self, matchers: Sequence[LlguidanceMatcher], drafts: Sequence[Sequence[int]], masks: np.ndarray, is_short: bool
    ) -> None:
        where = masks.ctypes.data, masks.strides[0], len(masks)
        alone, drafted, row = [], [], 0
        for matcher, draft in zip(matchers, drafts):
            if draft and (inner := list(takewhile(matcher.goes_on, draft))):
                drafted.append((matcher.state, row, inner))
            else:
                alone.append((matcher.state, row))
            row += 1 + len(draft)
        if alone and is_short:
            start, row_bytes, _ = where
            for state, row in alone:
                state.unsafe_compute_mask_ptr(start + row * row_bytes, row_bytes)
        elif alone:
            self._executor.unsafe_compute_mask_ptr(alone, *where)
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, *where)
        row = 0
        for matcher, draft in zip(matchers, drafts):
            if matcher.state.is_error():
                matcher.fail()
            if not matcher.is_usual:
                matcher.set_stops(masks[row : row + 1 + len(draft)])
            row += 1 + len(draft)


class LlguidanceGrammar:
    """A matcher at its beginning, of which others are copies."""

    num_bytes = 0  # the library does not tell

    def __init__(self, backend: LlguidanceBackend, start: Any, eos_token_id: int) -> None:
        self._backend, self._start, self._eos_token_id = backend, start, eos_token_id

    def matcher(self, stop_token_ids: Sequence[int]) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._backend, self._start.deep_copy(), self._eos_token_id, stop_token_ids)


class LlguidanceMatcher:
    """The library's own, ``state``. It knows one end token for all; here each request has its own."""

    def __init__(self, backend: LlguidanceBackend, state: Any, eos_token_id: int, stop_token_ids: Sequence[int]) -> None:
        self.backend, self.state = backend, state
        self.error: Exception | None = None
        self._eos_token_id, self._stops = eos_token_id, {*stop_token_ids, eos_token_id}
        self.is_usual = set(stop_token_ids) == {eos_token_id}

    def goes_on(self, token_id: int) -> bool:
        """Whether a token is a part of the output."""
        return token_id not in self._stops

    def set_stops(self, masks: np.ndarray) -> None:
        """Turns the library's end into the request's, where it is not the usual one, in masks int32 [any, words]."""
        word, bit = divmod(self._eos_token_id, 32)
        for mask in masks:
            set_bits(mask, self._stops, bool(mask[word] >> bit & 1))

    def fail(self) -> None:
        """Keeps the library's error."""
        if self.error is None:
            reason = _first_lines(self.state.get_error())
            kind = RuntimeError if "doesn't satisfy" in reason else ValueError  # else a limit of the library
            self.error = kind(f"the grammar failed: {reason}")


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
