"""The configuration of speculative decoding, as all of ``config``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .config_checks import require

SPECULATIVE_METHODS = ("ngram", "suffix", "draft_model", "eagle", "eagle3", "mtp")


@dataclass
class SpeculativeConfig:
    """Guesses of the next tokens that a step checks all at once, by vLLM's names; for the simulated kind, which accepts them at
    given rates.

    method        what guesses: ngram or suffix (on the host, taken as free), draft_model, or eagle, eagle3 or mtp (one layer of the
                  model itself and its head, once per guess)
    num_speculative_tokens  guesses per request and step; 0 = no speculation
    model         of method=draft_model: where its config.json is found, as ``ModelConfig.name``
    architecture  of method=draft_model: fields of a Hugging Face config.json; with ``model_type`` among them, ``model`` is but a
                  name
    rejection_sample_method       synthetic: guesses are accepted at random
    synthetic_acceptance_rates    per guess, how probable it is that it and all before it are accepted: not rising
    synthetic_acceptance_length   in place of the rates: mean number of tokens per request and step, the one after the accepted
                                  guesses included; by rates that vary as little as can be, 1, ..., 1, the rest, 0, ..., 0
    """

    method: str = "ngram"
    num_speculative_tokens: int = 0
    model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    rejection_sample_method: str = "synthetic"
    synthetic_acceptance_rates: list[float] | None = None
    synthetic_acceptance_length: float | None = None

    def acceptance_rates(self) -> list[float]:
        """``synthetic_acceptance_rates``, or those that ``synthetic_acceptance_length`` stands for."""
        if self.synthetic_acceptance_rates is not None:
            return self.synthetic_acceptance_rates
        assert self.synthetic_acceptance_length is not None, "validate() asks for one of them"
        return [min(1.0, max(0.0, self.synthetic_acceptance_length - 1 - i)) for i in range(self.num_speculative_tokens)]

    def validate(self) -> None:
        """Raises ValueError as ``EngineConfig.validate`` does."""
        k, rates, length = self.num_speculative_tokens, self.synthetic_acceptance_rates, self.synthetic_acceptance_length
        key = "speculative_config."
        require(0 <= k <= 128, key + "num_speculative_tokens", k, "from 0 (no speculation) to 128")
        require(self.method in SPECULATIVE_METHODS, key + "method", self.method, "one of " + ", ".join(SPECULATIVE_METHODS))
        method = self.rejection_sample_method
        require(method == "synthetic", key + "rejection_sample_method", method, "synthetic, the only one in this version")
        if not k:
            return
        given = self.model is not None or bool(self.architecture)
        expected = "given for method=draft_model, and for no other"
        require(given == (self.method == "draft_model"), key + "model", self.model, expected)
        require(
            (rates is None) != (length is None),
            key + "synthetic_acceptance_rates",
            rates,
            f"given, or else synthetic_acceptance_length (which is {length!r}), not both",
        )
        if rates is not None:
            falling = all(1 >= a >= b >= 0 for a, b in zip([1.0, *rates], rates))
            expected = f"{k} numbers from 0 to 1, as num_speculative_tokens says, none larger than the one before"
            require(len(rates) == k and falling, key + "synthetic_acceptance_rates", rates, expected)
        if length is not None:
            require(
                1 <= length <= k + 1, key + "synthetic_acceptance_length", length, f"from 1 to {k + 1}, one more than the guesses"
            )
