"""A step as the scheduler remembers it while it is in flight, what it brought, and totals over all of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from .request import Request
from .step import StepInput, StepOutput, TokenLogprobs


@dataclass(slots=True)
class Chunk:
    """A row that is not a plain decode: ``num_tokens`` tokens up to position ``end``; ``samples`` if they reach the last one. The
    last ``num_drafts`` of them are guesses of what follows."""

    request: Request
    num_tokens: int
    end: int
    samples: bool
    num_drafts: int = 0

    @property
    def place(self) -> int:
        """Where it stands in a step: single tokens, then drafts, then prompts."""
        return 0 if self.num_tokens == 1 else 1 if self.num_drafts else 2


@dataclass(slots=True)
class ScheduledStep:
    """A step input, and whose rows they are: decodes first, then chunks."""

    step_input: StepInput
    decodes: list[Request]
    chunks: list[Chunk]

    @property
    def rows(self) -> list[Request]:
        """The request of each row."""
        return self.decodes + [chunk.request for chunk in self.chunks]

    def logprobs(self, output: StepOutput) -> dict[Request, list[TokenLogprobs]]:
        """Of its output, per request that asked, the log-probabilities of the tokens it brought."""
        sampling = self.decodes + [chunk.request for chunk in self.chunks if chunk.samples]
        if output.num_accepted is None:
            return {sampling[index]: [found] for index, found in output.logprobs.items()}
        of_token = [request for request, count in zip(sampling, output.num_accepted) for _ in range(count)]
        collected: dict[Request, list[TokenLogprobs]] = defaultdict(list)
        for index in sorted(output.logprobs):
            collected[of_token[index]].append(output.logprobs[index])
        return collected


@dataclass(slots=True)
class Committed:
    """What a step brought.

    requests         those with new tokens at their end, or that ended with an error
    num_new          how many tokens, for requests of which it is not one
    logprobs         for requests that asked, of these tokens; more may follow that were dropped, and other requests may be there
    prompt_logprobs  (request, first computed token, entries from the token after it on)
    """

    requests: list[Request]
    num_new: dict[Request, int] = field(default_factory=dict)
    logprobs: dict[Request, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: list[tuple[Request, int, list[TokenLogprobs]]] = field(default_factory=list)


@dataclass
class SchedulerCounters:
    """Totals since the start. Prompt and prefix tokens count when a request is first admitted."""

    num_steps: int = 0
    num_preemptions: int = 0
    num_chunked_prefills: int = 0
    num_forks: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_output_tokens: int = 0
