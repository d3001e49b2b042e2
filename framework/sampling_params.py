"""How a request is sampled: names, defaults and ranges as users of vLLM know them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

MIN_TEMPERATURE: Final = 0.01
"""Smaller positive temperatures are raised to this: dividing by them would overflow."""

MAX_LOGIT_BIAS: Final = 100.0


class RequestOutputKind(Enum):
    """What each output of a request holds: everything so far, what is new, or only the end of the request."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """Sampling parameters of one request.

    n                    completions per prompt; they share the prompt's cache blocks, completion i samples with seed + i
    presence_penalty     [-2, 2], subtracted from the logit of every token generated so far
    frequency_penalty    [-2, 2], subtracted times the number of occurrences
    repetition_penalty   > 0; logits of tokens in prompt or output are divided by it (multiplied if negative)
    temperature          [0, 2]; 0 = greedy; positive values below 0.01 are raised to 0.01
    top_p                (0, 1]; 1 = off
    top_k                0 or -1 = off
    min_p                [0, 1]; 0 = off; least probability relative to the best token
    seed                 None or -1: the engine derives one
    stop                 strings that end the completion; they are cut off unless include_stop_str_in_output
    stop_token_ids       tokens that end the completion
    ignore_eos           the end-of-sequence token does not end the completion
    max_tokens           most tokens to generate; None = as many as the model's length allows
    min_tokens           no stop token is sampled, and no stop string looked for, before so many tokens
    logprobs             number of best tokens whose log-probabilities are returned for each output token, -1 = all
    prompt_logprobs      the same for each prompt token
    detokenize           False: token ids only
    skip_reading_prefix_cache  None = only if prompt_logprobs are asked for, which need the whole prompt computed
    logit_bias           token id -> value added to its logit, clamped to [-100, 100]
    allowed_token_ids    the only tokens that may be sampled
    bad_words            words that must not be generated

    The fields after ``bad_words`` exist in vLLM and not in this version: they are refused unless left as they are.
    ``all_stop_token_ids`` and ``bad_words_token_ids`` are filled in by the engine, which knows the tokenizer.
    Raises ValueError, naming field, value and range.
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
    structured_outputs: Any = None
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

    def __post_init__(self) -> None:
        self._refuse_unavailable()
        self._validate_numbers()
        if 0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        if self.greedy:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
            _require(self.n == 1, "n", self.n, "1 when temperature is 0: greedy completions would all be the same")
        if self.seed == -1:
            self.seed = None
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        self.stop_token_ids = _token_ids("stop_token_ids", self.stop_token_ids or [])
        self.all_stop_token_ids = self.stop_token_ids
        _require(all(isinstance(s, str) and s for s in self.stop), "stop", self.stop, "strings that are not empty")
        _require(self.detokenize or not self.stop, "stop", self.stop, "empty when detokenize=False: there is no text to search")
        self._validate_tokens()
        if self.skip_reading_prefix_cache is None:
            self.skip_reading_prefix_cache = self.prompt_logprobs is not None

    @property
    def greedy(self) -> bool:
        """Always the most likely token."""
        return self.temperature == 0

    def _validate_numbers(self) -> None:
        _integer("n", self.n, 1)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), -2, 2)
        _number("repetition_penalty", self.repetition_penalty)
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "greater than 0")
        _number("temperature", self.temperature, 0, 2)
        _number("top_p", self.top_p, 0, 1)
        _require(self.top_p > 0, "top_p", self.top_p, "in (0, 1]")
        _integer("top_k", self.top_k, -1)
        _number("min_p", self.min_p, 0, 1)
        _require(self.seed is None or _is_integer(self.seed), "seed", self.seed, "an integer or None")
        _integer("max_tokens", self.max_tokens, 1, optional=True)
        _integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            _require(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        _integer("logprobs", self.logprobs, -1, optional=True)
        _integer("prompt_logprobs", self.prompt_logprobs, -1, optional=True)
        _require(isinstance(self.output_kind, RequestOutputKind), "output_kind", self.output_kind, "a RequestOutputKind")

    def _validate_tokens(self) -> None:
        if self.logit_bias is not None:
            try:
                bias = {int(token): float(value) for token, value in self.logit_bias.items()}
            except (TypeError, ValueError, AttributeError):
                raise _error("logit_bias", self.logit_bias, "a dict of token id -> number") from None
            _token_ids("logit_bias", list(bias))
            _require(not any(map(math.isnan, bias.values())), "logit_bias", self.logit_bias, "without NaN")
            self.logit_bias = {t: min(max(v, -MAX_LOGIT_BIAS), MAX_LOGIT_BIAS) for t, v in bias.items()}
        if self.allowed_token_ids is not None:
            _require(len(self.allowed_token_ids) > 0, "allowed_token_ids", self.allowed_token_ids, "not empty (None = all)")
            self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
        if self.bad_words is not None:
            words = all(isinstance(word, str) and word.strip() for word in self.bad_words)
            _require(words, "bad_words", self.bad_words, "words that are not empty")

    def _refuse_unavailable(self) -> None:
        for name in _UNAVAILABLE:
            value = getattr(self, name)
            _require(value is None or value is False, name, value, "left out: it is not available in this version")


_UNAVAILABLE: Final = (
    "structured_outputs",
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


def _error(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"SamplingParams: {name}={value!r} cannot work: it must be {expected}")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise _error(name, value, expected)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(name: str, value: int | None, least: int, optional: bool = False) -> None:
    if not (optional and value is None):
        expected = f"an integer >= {least}" + (" or None" if optional else "")
        _require(_is_integer(value) and value >= least, name, value, expected)  # type: ignore[operator]


def _number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    _require(fits, name, value, "a finite number" if low == -math.inf else f"a number in [{low:g}, {high:g}]")


def _token_ids(name: str, ids: list[int]) -> list[int]:
    listed = list(ids)
    _require(all(_is_integer(t) and t >= 0 for t in listed), name, ids, "token ids (integers >= 0)")
    return listed
