"""The configuration of speculative decoding, as all of ``config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config_checks import require, section_of
from .table import PROPOSERS, proposer_kind

RULES = ("match", "standard", "synthetic")
DRAFT_SAMPLING = ("coupled", "greedy", "probabilistic")
MAX_DRAFTS = 128
MAX_LOOKUP = 1024
"""Tokens that are looked up, at most: a proposer keeps something for each length."""


@dataclass
class SpeculativeConfig:
    """Drafts of the next tokens that a step checks all at once; names and defaults are vLLM's, where it has them.

    method        what drafts: a name in ``table.PROPOSERS`` (ngram, suffix or forced, on the host; draft_model; medusa, eagle,
                  eagle3 or mtp, heads over the model's hidden states) or of an entry point, or module:Class; None = no
                  speculation. With those on the host, tokens that a grammar forces come first; with forced they are all
    num_speculative_tokens  drafts per request and step, at most; to be given with a method
    model         of draft_model, medusa, eagle and eagle3 (mtp: if the model has no such head itself): where the weights are, as
                  ``ModelConfig.name``
    architecture  of method=draft_model: fields of a Hugging Face config.json; with ``model_type`` among them, ``model`` is but a
                  name

    num_speculative_tokens_per_batch_size  rows [first, last, drafts]: how many with so many requests running; without gaps from 1
                  on. Beyond the last row it goes on as there
    adaptive_depth  as many drafts as bring most tokens per second, by the acceptance and the times of the steps so far

    rejection_sample_method  which drafts stand. match: those that equal what is sampled in their place, so that the output is that
                  without speculation; standard: by rejection sampling, so that its distribution is; synthetic: at random, by the
                  rates. None = synthetic if rates or a length are given, else match
    draft_sample_method  how the device draws drafts. coupled: by the noise with which the model's own token in that place is drawn;
                  greedy; probabilistic: by noise of their own. None = probabilistic for standard, else coupled
    synthetic_acceptance_rates    per draft, how probable it is that it and all before it are accepted: not rising
    synthetic_acceptance_length   in place of the rates: mean number of tokens per request and step, the one after the accepted
                                  drafts included; by rates that vary as little as can be, 1, ..., 1, the rest, 0, ..., 0

    Of ngram:
    prompt_lookup_min, prompt_lookup_max  length of the text's end that is looked up in it, at least and at most; None = as the
                  other, or 5
    prompt_lookup_match  where several are as long: leftmost or rightmost

    Of suffix:
    suffix_decoding_max_tree_depth       longest text's end that is looked up, with the drafts behind it
    suffix_decoding_max_cached_requests  outputs of earlier requests that are searched too; 0 = none
    suffix_decoding_max_spec_factor      drafts per token of the text's end that was found
    suffix_decoding_min_token_prob       drafts end where it is less probable, by counts, that they are right so far
    """

    method: str | None = None
    num_speculative_tokens: int = 0
    model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    num_speculative_tokens_per_batch_size: list[list[int]] | None = None
    adaptive_depth: bool = False
    rejection_sample_method: str | None = None
    draft_sample_method: str | None = None
    synthetic_acceptance_rates: list[float] | None = None
    synthetic_acceptance_length: float | None = None
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None
    prompt_lookup_match: str = "leftmost"
    suffix_decoding_max_tree_depth: int = 24
    suffix_decoding_max_cached_requests: int = 10_000
    suffix_decoding_max_spec_factor: float = 1.0
    suffix_decoding_min_token_prob: float = 0.1

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> SpeculativeConfig:
        """Of a mapping of its fields."""
        return section_of(cls, "speculative_config", given, "speculative_config.")

    @property
    def place(self) -> Literal["host", "device"] | None:
        """Where drafts are made; None: nowhere."""
        return None if self.method is None else proposer_kind(self.method).place

    @property
    def acceptance_rule(self) -> str:
        """``rejection_sample_method``, or what it is if nothing was said."""
        is_synthetic = self.synthetic_acceptance_rates is not None or self.synthetic_acceptance_length is not None
        return self.rejection_sample_method or ("synthetic" if is_synthetic else "match")

    @property
    def draft_sampling(self) -> str:
        """``draft_sample_method``, or what it is if nothing was said."""
        return self.draft_sample_method or ("probabilistic" if self.acceptance_rule == "standard" else "coupled")

    @property
    def prompt_lookup_lengths(self) -> tuple[int, int]:
        """(least, most)."""
        low, high = self.prompt_lookup_min, self.prompt_lookup_max
        if low is None:
            low = 5 if high is None else high
        return low, low if high is None else high

    def acceptance_rates(self) -> list[float]:
        """``synthetic_acceptance_rates``, or those that ``synthetic_acceptance_length`` stands for."""
        if self.synthetic_acceptance_rates is not None:
            return self.synthetic_acceptance_rates
        assert self.synthetic_acceptance_length is not None, "validate() asks for one of them"
        return [min(1.0, max(0.0, self.synthetic_acceptance_length - 1 - i)) for i in range(self.num_speculative_tokens)]

    def validate(self, has_model: bool = True) -> None:
        """Raises ValueError as ``EngineConfig.validate`` does. has_model: the executor computes tokens; others make them up, and
        know neither whether a draft is right nor what a head's weights are."""
        method, k = self.method, self.num_speculative_tokens
        if method is None:
            unused = [name for name, default in vars(type(self)()).items() if getattr(self, name) != default]
            expected = f"given with {', '.join(unused)}: one of {', '.join(PROPOSERS)}, or module:Class of your own"
            self._require(not unused, "method", expected)
            return
        weights = proposer_kind(method).weights
        self._require(1 <= k <= MAX_DRAFTS, "num_speculative_tokens", f"from 1 to {MAX_DRAFTS}, and given with method={method}")
        given = self.model is not None or bool(self.architecture)
        if weights == "none":
            self._require(not given, "model", f"left out: method={method} has no weights")
        elif weights == "needed" and (has_model or method == "draft_model"):
            self._require(given, "model", f"given for method={method}: where its weights are")
        self._require(method == "draft_model" or not self.architecture, "architecture", "left out: it is of method=draft_model")
        self._check_schedule()
        self._check_acceptance(has_model)
        self._check_lookup()

    def _check_schedule(self) -> None:
        k, rows = self.num_speculative_tokens, self.num_speculative_tokens_per_batch_size
        if rows is None:
            return
        self._require(not self.adaptive_depth, "adaptive_depth", "false beside num_speculative_tokens_per_batch_size")
        key = "num_speculative_tokens_per_batch_size"
        self._require(rows and all(len(row) == 3 for row in rows), key, "rows [first, last, drafts], at least one")
        starts = [1, *(last + 1 for _, last, _ in rows)]
        follow = all(first == start and first <= last for start, (first, last, _) in zip(starts, rows))
        self._require(follow, key, "rows [first, last, drafts] that begin at 1, and each right behind the one before")
        expected = f"rows with 0 to {k} drafts, as num_speculative_tokens says"
        self._require(all(0 <= drafts <= k for _, _, drafts in rows), key, expected)

    def _check_acceptance(self, has_model: bool) -> None:
        k, rates, length, rule = (
            self.num_speculative_tokens,
            self.synthetic_acceptance_rates,
            self.synthetic_acceptance_length,
            self.acceptance_rule,
        )
        self._require(rule in RULES, "rejection_sample_method", "one of " + ", ".join(RULES))
        if rule != "synthetic":
            for key in ("synthetic_acceptance_rates", "synthetic_acceptance_length"):
                self._require(getattr(self, key) is None, key, f"left out: rejection_sample_method={rule} does not read it")
            expected = "synthetic, with synthetic_acceptance_rates or _length: this executor makes tokens up"
            self._require(has_model, "rejection_sample_method", expected)
        else:
            expected = f"given, or else synthetic_acceptance_length (which is {length!r}), not both"
            self._require((rates is None) != (length is None), "synthetic_acceptance_rates", expected)
        if rates is not None:
            falling = all(1 >= a >= b >= 0 for a, b in zip([1.0, *rates], rates))
            expected = f"{k} numbers from 0 to 1, as num_speculative_tokens says, none larger than the one before"
            self._require(len(rates) == k and falling, "synthetic_acceptance_rates", expected)
        if length is not None:
            expected = f"from 1 to {k + 1}, one more than the drafts"
            self._require(1 <= length <= k + 1, "synthetic_acceptance_length", expected)
        self._require(self.draft_sampling in DRAFT_SAMPLING, "draft_sample_method", "one of " + ", ".join(DRAFT_SAMPLING))
        expected = "greedy or probabilistic: rejection sampling (standard) needs drafts that were drawn by noise of their own"
        self._require(rule != "standard" or self.draft_sampling != "coupled", "draft_sample_method", expected)

    def _check_lookup(self) -> None:
        low, high = self.prompt_lookup_lengths
        self._require(low >= 1, "prompt_lookup_min", "a positive number, as prompt_lookup_max if left out")
        expected = f"from {low}, which is prompt_lookup_min, to {MAX_LOOKUP}"
        self._require(low <= high <= MAX_LOOKUP, "prompt_lookup_max", expected)
        self._require(self.prompt_lookup_match in ("leftmost", "rightmost"), "prompt_lookup_match", "leftmost or rightmost")
        depth = self.suffix_decoding_max_tree_depth
        expected = f"from 2, a token that is looked up and one behind it, to {MAX_LOOKUP}"
        self._require(2 <= depth <= MAX_LOOKUP, "suffix_decoding_max_tree_depth", expected)
        self._require(self.suffix_decoding_max_cached_requests >= 0, "suffix_decoding_max_cached_requests", "0 (none) or more")
        factor, probability = self.suffix_decoding_max_spec_factor, self.suffix_decoding_min_token_prob
        self._require(0 < factor < float("inf"), "suffix_decoding_max_spec_factor", "more than 0")
        self._require(0 <= probability <= 1, "suffix_decoding_min_token_prob", "from 0 to 1")

    def _require(self, condition: object, name: str, expected: str) -> None:
        require(condition, f"speculative_config.{name}", getattr(self, name), expected)
