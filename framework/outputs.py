"""What users get back. Names follow vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .engine.request import FinishReason

if TYPE_CHECKING:
    import numpy as np


class Logprob(NamedTuple):
    """Log-probability of a token under the model's raw distribution; rank 1 is the most likely token."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsOnePosition = dict[int, Logprob]
"""Token id -> its log-probability, of one position: the token's own comes first."""


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request, in seconds of the engine's clock. With n > 1 the completions share one object.

    arrival_s          as given to ``add_request``
    first_scheduled_s  when its first tokens were submitted
    token_times_s      when each token came out, all completions together, ascending
    num_preemptions    how often the request lost its place
    """

    arrival_s: float
    first_scheduled_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    num_preemptions: int = 0

    @property
    def first_token_s(self) -> float | None:
        return self.token_times_s[0] if self.token_times_s else None

    @property
    def last_token_s(self) -> float | None:
        return self.token_times_s[-1] if self.token_times_s else None


@dataclass(slots=True)
class CompletionOutput:
    """One completion, or what is new of it.

    index               which of the n completions
    cumulative_logprob  sum over all output tokens so far; None unless logprobs were asked for
    logprobs            per token in ``token_ids``: token id -> Logprob of the token itself and the top ones
    finish_reason       stop, length, abort, error (the logits were NaN or all -inf); None while running
    stop_reason         the stop string or stop token id that ended it; None for end of sequence
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[LogprobsOnePosition] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """The state of a request after a step.

    prompt            text of the prompt; None if it came as token ids
    prompt_logprobs   per prompt token, None for the first; None unless asked for, and until the prompt is computed
    outputs           by index; deltas hold the completions with something new
    num_cached_tokens prompt tokens that were not computed because the cache held them
    metrics           once the request is finished
    error             what failed, if an exception ended the request: it is finished, and its completions that were not have the
                      finish reason "error"
    refused           the error is the request's own: it asked for what cannot be, and nothing of it was computed
    pooled            of a pooling model, once the request is finished: float32 [D], or [T, D] of each token of the prompt
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsOnePosition | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None
    metrics: RequestMetrics | None = None
    error: str | None = None
    refused: bool = False
    pooled: np.ndarray | None = None
