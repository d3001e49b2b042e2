"""A step as the scheduler remembers it while it is in flight, what it brought, and totals over all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .request import FAILED_ROW, Request
from .step import NewRequest, StepInput, StepOutput, TokenLogprobs

if TYPE_CHECKING:
    import numpy as np


def new_request(request: Request, lora_slot: int) -> NewRequest:
    """What an executor is told of a request that has just got its seat and blocks."""
    return NewRequest(
        request.seat,
        request.request_id,
        list(request.token_ids),
        request.num_prompt_tokens,
        request.num_computed,
        [list(table) for table in request.blocks],
        request.params,
        request.pooling,
        lora_slot,
        request.images,
        request.encoder_input,
        request.snapshot,
    )


@dataclass(slots=True)
class Chunk:
    """A row that is not a plain decode: ``num_tokens`` tokens up to position ``end``; ``num_logits`` as in StepInput. drafts: those
    that it has, -1 for what only the executor knows; where a model denoises, the tokens at its end that the executor cannot know.
    room: how many drafts it might have had."""

    request: Request
    num_tokens: int
    end: int
    num_logits: int
    drafts: Sequence[int] = ()
    room: int = 0

    @property
    def place(self) -> int:
        """Where it stands in a step: single tokens, then drafts, then prompts."""
        return 0 if self.num_tokens == 1 else 1 if self.num_logits > 1 else 2


@dataclass(slots=True)
class ScheduledStep:
    """A step input, and whose rows they are: decodes first, then chunks. num_drafts: most that a row that decodes was to have."""

    step_input: StepInput
    decodes: list[Request]
    chunks: list[Chunk]
    num_drafts: int = 0
    submitted_s: float = 0.0

    @property
    def rows(self) -> list[Request]:
        """The request of each row."""
        return self.decodes + [chunk.request for chunk in self.chunks]

    @property
    def sampling(self) -> list[Request]:
        """The request of each row that yields tokens."""
        return self.decodes + [chunk.request for chunk in self.chunks if chunk.num_logits]

    def drafts(self, row: int) -> list[int]:
        """Of a row; -1 for what only the executor knows."""
        first_chunk = len(self.decodes)
        return list(self.chunks[row - first_chunk].drafts) if row >= first_chunk else []

    def fill_rows(self) -> None:
        """Puts the rows into the step input, in its order."""
        step, num_decodes, chunks = self.step_input, len(self.decodes), self.chunks
        chunks.sort(key=lambda chunk: chunk.place)
        step.seats = [request.seat for request in self.rows]
        step.num_tokens = [1] * num_decodes + [chunk.num_tokens for chunk in chunks]
        step.num_logits = [1] * num_decodes + [chunk.num_logits for chunk in chunks]

    def fill_drafts(self, num_proposals: int, from_host: bool) -> None:
        """The rest of ``fill_rows`` where requests speculate. num_proposals as in StepInput; from_host: who makes the drafts."""
        step, decodes, chunks = self.step_input, self.decodes, self.chunks
        step.num_computed = [request.num_computed - 1 for request in decodes] + [chunk.end - chunk.num_tokens for chunk in chunks]
        if from_host:
            step.drafts = [[] for _ in decodes] + [list(chunk.drafts) for chunk in chunks]
            return
        step.num_proposals = num_proposals
        for request, num_logits in zip(self.rows, step.num_logits):
            request.num_proposed = num_proposals if num_logits else 0

    def logprobs(self, output: StepOutput) -> dict[Request, list[TokenLogprobs]]:
        """Of its output, per request that asked, the log-probabilities of the tokens it brought."""
        sampling = self.sampling
        if output.num_accepted is None:
            return {sampling[index]: [found] for index, found in output.logprobs.items()}
        of_token = [request for request, count in zip(sampling, output.num_accepted) for _ in range(1 + count)]
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
    proposed         drafts that the executor told of: what it proposes to follow
    pooled           pooling requests that ended, with what the executor made of them; None: it has no model
    """

    requests: list[Request]
    num_new: dict[Request, int] = field(default_factory=dict)
    logprobs: dict[Request, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: list[tuple[Request, int, list[TokenLogprobs]]] = field(default_factory=list)
    proposed: dict[Request, list[int]] = field(default_factory=dict)
    pooled: list[tuple[Request, np.ndarray | None]] = field(default_factory=list)

    def add(self, request: Request, num_new: int) -> None:
        """A request that got so many tokens, or ended with an error."""
        self.requests.append(request)
        if num_new != 1:
            self.num_new[request] = num_new

    def settle(self, request: Request, new: list[int]) -> None:
        """The tokens that a pass over a canvas settled for good, if it did."""
        if new:
            start = len(request.token_ids)
            self.add(request, request.append(new))
            request.num_tokens = len(request.token_ids)
            if request.params.logprobs is not None and new[0] != FAILED_ROW:
                self.logprobs[request] = [request.told.pop(start + index) for index in range(len(new))]


@dataclass
class SchedulerCounters:
    """Totals since the start. Prompt and prefix tokens count when a request is first admitted.
    num_denoising_passes: over a canvas, of any request."""

    num_steps: int = 0
    num_preemptions: int = 0
    num_chunked_prefills: int = 0
    num_forks: int = 0
    num_denoising_passes: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_output_tokens: int = 0
