"""How a request is sampled: names, defaults and ranges as users of vLLM know them."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from numbers import Integral, Real
from typing import Any, Final, TypeGuard

from .structured.spec import StructuredOutputsParams

MIN_TEMPERATURE: Final = 0.01
"""Smaller positive temperatures are raised to this: dividing by them would overflow."""

MAX_LOGIT_BIAS: Final = 100.0
MAX_N: Final = 16384
MAX_LOGPROBS: Final = 20
"""Log-probabilities per token that an engine gives unless it was built with another limit."""
INT32_MAX: Final = 2**31 - 1
FLOAT32_TINY: Final = 2.0**-126
FLOAT32_MAX: Final = (2 - 2.0**-23) * 2.0**127


class RequestOutputKind(Enum):
    """What each output of a request holds: everything so far, what is new, or only the end of the request."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """Sampling parameters of one request.

    n                    at most 16384 completions per prompt; they share its cache blocks, completion i samples with seed + i
    presence_penalty     [-2, 2], subtracted from the logit of every token generated so far
    frequency_penalty    [-2, 2], subtracted times the number of occurrences
    repetition_penalty   > 0, as float32 too; logits of tokens in prompt or output are divided by it (multiplied if negative)
    temperature          [0, 2]; 0 = greedy; positive values below 0.01 are raised to 0.01
    top_p                (0, 1]; 1 = off
    top_k                up to 2^31 - 1; 0 or -1 = off
    min_p                [0, 1]; 0 = off; least probability relative to the best token
    seed                 of 64 bits, signed or not; None or -1: the engine derives one
    stop                 strings that end the completion; they are cut off unless include_stop_str_in_output
    stop_token_ids       tokens that end the completion
    ignore_eos           the end-of-sequence token does not end the completion
    max_tokens           most tokens to generate; None = as many as the model's length allows
    min_tokens           no stop token is sampled, and no stop string looked for, before so many tokens
    logprobs             number of best tokens whose log-probabilities are returned for each output token, -1 = all; the model's
                         ``max_logprobs`` is the most that may be asked for
    prompt_logprobs      the same for each prompt token
    detokenize           False: token ids only
    skip_reading_prefix_cache  compute the whole prompt; always so with prompt_logprobs, which need it
    logit_bias           token id -> value added to its logit, clamped to [-100, 100]
    allowed_token_ids    the only tokens that may be sampled
    bad_words            words that must not be generated
    structured_outputs   the form of the output; also as a dict of its fields. The end of the form ends the completion, however many
                         tokens were asked for; where it may end or go on, ``min_tokens`` and ``ignore_eos`` make it go on

    The fields after ``structured_outputs`` exist in vLLM and not in this version: they are refused unless left as they are.
    ``all_stop_token_ids``, ``bad_words_token_ids`` and ``first_banned_token_ids`` (not sampled as the first token) are filled
    in by the engine, which knows the tokenizer and the model.
    Raises ValueError, naming field, value and range; ``validate`` does so again after changes.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_reading_prefix_cache: bool | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprob_token_ids: list[int] | None = None
    prompt_logprob_start: int | None = None
    flat_logprobs: bool = False
    stream_interval: int | None = None
    thinking_token_budget: int | None = None
    repetition_detection: Any = None
    watermarking: Any = None
    trace_decode_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None

    all_stop_token_ids: list[int] = field(default_factory=list, init=False)
    bad_words_token_ids: list[list[int]] | None = field(default=None, init=False)
    first_banned_token_ids: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.validate()

    @classmethod
    def from_optional(cls, **given: Any) -> SamplingParams:
        """Like the constructor, except that None stands for a field's default; ``max_tokens=None`` keeps its own meaning."""
        return cls(**{name: value for name, value in given.items() if value is not None or name == "max_tokens"})

    def clone(self) -> SamplingParams:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)

    def validate(self) -> None:
        """Checks every field and brings it into one form, of Python's own types and in containers of its own. The engine does so
        again with its copy: fields may have changed since the construction. Raises ValueError naming field, value and range."""
        for name in _UNAVAILABLE:
            value = getattr(self, name)
            _require(value is None or value is False, name, value, "left out: it is not available in this version")
        for name in _FLAGS:
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        for name, least, most, optional in _INTEGERS:
            setattr(self, name, _integer(name, getattr(self, name), least, most, optional))
        for name, low, high in _NUMBERS:
            setattr(self, name, _number(name, getattr(self, name), low, high))
        _require(self.top_p > 0, "top_p", self.top_p, "in (0, 1]")
        if self.max_tokens is not None:
            _require(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        _require(isinstance(self.output_kind, RequestOutputKind), "output_kind", self.output_kind, "a RequestOutputKind")
        if 0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        if self.greedy:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
            _require(self.n == 1, "n", self.n, "1 when temperature is 0: greedy completions would all be the same")
        if self.seed == -1:
            self.seed = None
        if self.top_k == -1:
            self.top_k = 0
        self._validate_text()
        self._validate_tokens()
        if self.structured_outputs is not None:
            self.structured_outputs = replace(StructuredOutputsParams.of(self.structured_outputs))
        skip = self.skip_reading_prefix_cache
        _require(skip is None or isinstance(skip, bool), "skip_reading_prefix_cache", skip, "True, False or None")
        self.skip_reading_prefix_cache = bool(skip) or self.prompt_logprobs is not None

    @property
    def greedy(self) -> bool:
        """Always the most likely token."""
        return self.temperature == 0

    def _validate_text(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else _listed("stop", _or_empty(self.stop), "a string or a list of strings")
        _require(all(isinstance(s, str) and s for s in stop), "stop", stop, "strings that are not empty")
        _require(self.detokenize or not stop, "stop", stop, "empty when detokenize=False: there is no text to search")
        self.stop = stop
        if self.bad_words is not None:
            words = _listed("bad_words", self.bad_words, "a list of words (of one word too)")
            _require(all(isinstance(w, str) and w.strip() for w in words), "bad_words", words, "words that are not empty")
            _require(all(map(is_unicode, words)), "bad_words", words, "text that UTF-8 can hold (no lone surrogates)")
            self.bad_words = words

    def _validate_tokens(self) -> None:
        self.all_stop_token_ids = self.stop_token_ids = _token_ids("stop_token_ids", _or_empty(self.stop_token_ids))
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
            _require(len(self.allowed_token_ids) > 0, "allowed_token_ids", self.allowed_token_ids, "not empty (None = all)")
        if self.bad_words_token_ids is not None:
            words = _listed("bad_words_token_ids", self.bad_words_token_ids, "a list of lists of token ids")
            self.bad_words_token_ids = [_token_ids("bad_words_token_ids", word) for word in words]
            _require(all(self.bad_words_token_ids), "bad_words_token_ids", words, "lists that are not empty")
        if self.logit_bias is not None:
            self.logit_bias = _logit_bias(self.logit_bias)


@dataclass
class BeamSearchParams:
    """How beams grow. Fields as in vLLM.

    beam_width      beams that go on after each step, and sequences that come back; it takes 2 * beam_width log-probabilities per
                    token, of which an engine gives ``max_logprobs``
    max_tokens      most tokens to generate; the model's length ends beams, too
    ignore_eos      the end of sequence is a token like others
    temperature     accepted as it is: log-probabilities do not depend on it
    length_penalty  above 0, longer sequences score better
    include_stop_str_in_output  whether tokens end with the end of sequence

    Raises ValueError, naming field, value and range.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            setattr(self, name, _integer(name, getattr(self, name), 1, math.inf, False))
        for name, low, high in (("temperature", 0, 2), ("length_penalty", -100, 100)):
            setattr(self, name, _number(name, getattr(self, name), low, high))

    @property
    def step_params(self) -> SamplingParams:
        """Of the request that asks for a beam's next tokens; log-probabilities do not depend on what it samples."""
        final = RequestOutputKind.FINAL_ONLY
        return SamplingParams(temperature=0, max_tokens=1, logprobs=2 * self.beam_width, detokenize=False, output_kind=final)


_UNAVAILABLE: Final = (
    "logprob_token_ids",
    "prompt_logprob_token_ids",
    "prompt_logprob_start",
    "flat_logprobs",
    "stream_interval",
    "thinking_token_budget",
    "repetition_detection",
    "watermarking",
    "trace_decode_token_ids",
    "extra_args",
)


_FLAGS: Final = ("ignore_eos", "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output")
_INTEGERS: Final = (
    ("n", 1, MAX_N, False),
    ("top_k", -1, INT32_MAX, False),
    ("seed", -(2**63), 2**64 - 1, True),
    ("max_tokens", 1, math.inf, True),
    ("min_tokens", 0, math.inf, False),
    ("logprobs", -1, INT32_MAX, True),
    ("prompt_logprobs", -1, INT32_MAX, True),
)
"""Field, least and greatest value, and whether it may be None. Executors keep top_k as int32 and seeds in 64 bits."""
_NUMBERS: Final = (
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("repetition_penalty", FLOAT32_TINY, FLOAT32_MAX),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
)
"""Field, least and greatest value; executors keep them as float32."""


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number: an int or one of numpy's, but no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text: not with half of a surrogate pair, as JSON may bring it. Tokenizers refuse that."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _error(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"SamplingParams: {name}={reprlib.repr(value)} cannot work: it must be {expected}")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise _error(name, value, expected)


def _integer(name: str, value: Any, least: int, most: float, optional: bool) -> int | None:
    if optional and value is None:
        return None
    if not (is_integer(value) and least <= value <= most):
        bounds = f">= {least}" if most == math.inf else f"from {least} to {most}"
        raise _error(name, value, f"an integer {bounds}" + (" or None" if optional else ""))
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if not (_is_number(value) and low <= value <= high):
        raise _error(name, value, f"a number in [{low:g}, {high:g}]")
    return float(value)


def _or_empty(value: Any) -> Any:
    return () if value is None else value


def _listed(name: str, value: Any, expected: str) -> list[Any]:
    """Of text, bytes and dicts the parts are not what was meant."""
    _require(isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping), name, value, expected)
    try:
        return list(value)
    except TypeError:  # an array without dimensions
        raise _error(name, value, expected) from None


def _token_ids(name: str, ids: Any) -> list[int]:
    listed = _listed(name, ids, "a list of token ids")
    _require(all(is_integer(token) and token >= 0 for token in listed), name, listed, "token ids (integers >= 0)")
    return [int(token) for token in listed]


def _logit_bias(given: Any) -> dict[int, float]:
    """Ids may be text, as keys of JSON are."""
    _require(isinstance(given, Mapping), "logit_bias", given, "a dict of token id -> number")
    ids = [int(token) if isinstance(token, str) and token.isdecimal() else token for token in given]
    for value in given.values():
        _require(_is_number(value) and value == value, "logit_bias", given, "a dict of token id -> number, NaN aside")
    clamped = [float(min(max(value, -MAX_LOGIT_BIAS), MAX_LOGIT_BIAS)) for value in given.values()]
    return dict(zip(_token_ids("logit_bias", ids), clamped))
