"""What crosses the border between scheduler and executor. Picklable, made of deltas, columnar: no object per token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sampling_params import SamplingParams


@dataclass(slots=True)
class NewRequest:
    """A request that takes a seat: on first scheduling, and again when it resumes after a preemption.

    A seat is the permanent place of a request in the executor, a slot the place of a token in the cache, a row a request's part of
    one step.

    seat         its place in the executor until the request finishes or is preempted
    token_ids    every token known so far: the prompt, and on resumption the output
    num_prompt_tokens    how many of them are prompt
    num_computed_tokens  how many of them the cache already holds (prefix hit)
    block_ids    per KV group, the blocks it holds at this moment
    sampling     its parameters; ``seed`` is always set
    """

    seat: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[list[int]]
    sampling: SamplingParams


@dataclass(slots=True)
class StepInput:
    """One step. Applied in this order: released, new, new_blocks, copies, compute.

    After a submission that failed, whatever of it was applied, its rows and what it released are released by the next step.

    step_id     ascending; a number is left out where the engine did not get as far as submitting
    seats       rows that compute in this step: those with one token first, then those with drafts, then prompts and chunks
    num_tokens  tokens that each of them computes, from its number of computed tokens on
    samples     whether a row's last token yields a logit row and a new token (False: a chunk before the prompt's end)
    released    seats whose request finished, failed, was aborted or preempted since the last step; free ones are passed over
    new_blocks  (seat, group, blocks) appended to rows' block tables; block 0 (null) stands for one that left the window
    copies      (group, source block, destination block) to copy before computing
    num_drafts  how many of each row's tokens, its last ones, are guesses that the executor makes and checks; None: none anywhere
    masked      rows, ascending, whose next token a grammar has a say in: no row is sampled before ``Handle.sample`` brings what
                they may take
    """

    step_id: int
    seats: list[int]
    num_tokens: list[int]
    samples: list[bool]
    new: list[NewRequest] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    new_blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    num_drafts: list[int] | None = None
    masked: list[int] = field(default_factory=list)


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities of one position: the token itself with its rank, then the top ones, best first."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(slots=True)
class StepOutput:
    """What a step returned.

    token_ids        sampled tokens, flat, in the order of the rows with ``samples``; -1: the row's logits were NaN or all -inf
    num_accepted     tokens per such row, at most one more than its drafts: the drafts that were right, and the token after them;
                     None: one each. Of the others the cache holds nothing of use, and the row computes on from the last one
    logprobs         by index into token_ids, for rows that asked
    prompt_logprobs  by index into ``StepInput.seats``, for rows that asked: one entry per prompt token whose successor's
                     log-probability this step computed
    failed           by index into ``StepInput.seats``: why the executor could not take in this row's request, which ends with
                     that text; it has its place in token_ids all the same
    """

    step_id: int
    token_ids: list[int]
    num_accepted: list[int] | None = None
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
