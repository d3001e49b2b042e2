"""What crosses the border between scheduler and executor. Made of deltas, columnar: no object per token. Pickles are small: some
bytes a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .packing import Packed, pack, pack_columns, pack_lists, unpack, unpack_columns, unpack_lists

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ..multimodal.items import ImageItem
    from ..pooling_params import PoolingParams
    from ..sampling_params import SamplingParams
    from .encoding import EncoderInput


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
    pooling      what is to be made of its prompt, whose rows yield no logits; None: it samples
    lora_slot    of its adapter; -1: it has none
    images       where they stand among its tokens
    encoder_input  what an encoder is to read before the first of its tokens is computed; None: there is no encoder
    snapshot     of the states that are kept of prefixes, that of its computed tokens; -1: there is none
    """

    seat: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[list[int]]
    sampling: SamplingParams
    pooling: PoolingParams | None = None
    lora_slot: int = -1
    images: tuple[ImageItem, ...] = ()
    encoder_input: EncoderInput | None = None
    snapshot: int = -1

    def __reduce__(self) -> tuple[Any, ...]:
        counts = (self.seat, self.num_prompt_tokens, self.num_computed_tokens)
        tokens = pack(self.token_ids), pack_lists(self.block_ids)
        rest = self.sampling, self.pooling, self.lora_slot, self.images, self.encoder_input, self.snapshot
        return _new_request, (*counts, self.request_id, *tokens, *rest)


@dataclass(slots=True)
class StepInput:
    """One step. Applied in this order: lora_loads, released, forgotten, images, new, new_blocks, copies, compute, snapshots.

    After a submission that failed, whatever of it was applied, its rows and what it released are released by the next step.

    step_id     ascending; a number is left out where the engine did not get as far as submitting
    seats       rows that compute in this step: those with one token first, then those with drafts, then prompts and chunks
    num_tokens  tokens that each of them computes, from its number of computed tokens on
    num_logits  per row, how many of its tokens, the last ones, yield a logit row: 0 = a chunk before the prompt's end, 1 = the row
                samples a token, 1 + n = its last n tokens are drafts, guesses that the step checks. Where a model denoises, n: its
                last n tokens are drawn, each by its own row, and it is for the next step to say what became of them
    released    seats whose request finished, failed, was aborted or preempted since the last step; free ones are passed over
    new_blocks  (seat, group, blocks) appended to rows' block tables; block 0 (null) stands for one that left the window
    copies      (group, source block, destination block) to copy before computing
    num_computed   per row, tokens in its cache before this step, at most: how many drafts of steps in flight were right is known to
                   the executor alone. None: no step has drafts, and the executor counts
    drafts         per row, its drafts, or of a model that denoises the tokens at its end that may have changed; None: they are the
                   drafts that the executor made after the row's step before
    num_proposals  how many drafts the executor is to make for each row that samples, for the next step
    decoded        of a pipeline, where not every stage samples: the tokens that the rows with one token compute, as far as those
                   were sampled. None: the executor has them
    most_tokens    of steps that several schedulers take together: what the fullest of them has
    masked      rows, ascending, whose next token a grammar has a say in: no row is sampled before ``Handle.sample`` brings what
                they may take
    lora_loads  (slot, key) of adapters on the host that are to be in these slots from this step on
    images      those to encode, whose embeddings are kept from this step on
    forgotten   keys of images whose embeddings are kept no longer; unknown ones are passed over
    snapshots   (seat, snapshot) whose states, as they are after this step, are kept there for requests that begin alike
    """

    step_id: int
    seats: list[int]
    num_tokens: list[int]
    num_logits: list[int]
    new: list[NewRequest] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    new_blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    num_computed: list[int] | None = None
    drafts: list[list[int]] | None = None
    num_proposals: int = 0
    decoded: list[int] | None = None
    most_tokens: int = 0
    lora_loads: list[tuple[int, str]] = field(default_factory=list)
    images: list[ImageItem] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    snapshots: list[tuple[int, int]] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        rows = (pack(self.seats), pack(self.num_tokens), pack(self.num_logits))
        decoded = None if self.decoded is None else pack(self.decoded)
        moved = self.new or self.new_blocks or self.copies or self.snapshots or self.lora_loads or self.images or self.forgotten
        if not moved and not self.masked and self.num_computed is self.drafts is None:
            return _step_input, (self.step_id, *rows, pack(self.released), self.num_proposals, decoded, self.most_tokens)
        blocks = None
        if self.new_blocks:
            seats, groups, added = zip(*self.new_blocks)
            blocks = (pack(seats), pack(groups), *pack_lists(added))
        computed = None if self.num_computed is None else pack(self.num_computed)
        drafts = None if self.drafts is None else pack_lists(self.drafts)
        copies, kept = pack_columns(self.copies), (self.images, self.forgotten, pack_columns(self.snapshots))
        rest = (self.new, blocks, copies, pack(self.masked), computed, drafts, self.lora_loads, *kept)
        return _step_input, (self.step_id, *rows, pack(self.released), self.num_proposals, decoded, self.most_tokens, *rest)


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

    token_ids        sampled tokens, flat, in the order of the rows with logits; -1: the row's logits were NaN or all -inf
    num_accepted     per such row, how many of its drafts were right: it brings these and the token after them, and computes on from
                     that one. Of the other drafts the cache holds nothing of use. None: no row had drafts
    logprobs         by index into token_ids, for rows that asked
    prompt_logprobs  by index into ``StepInput.seats``, for rows that asked: one entry per prompt token whose successor's
                     log-probability this step computed
    failed           by index into ``StepInput.seats``: why the executor could not take in this row's request, which ends with
                     that text; it has its place in token_ids all the same
    drafts           per row with logits, what the executor proposes to follow; None: the step asked for no proposals
    pooled           by index into ``StepInput.seats``, for pooling requests whose prompt ended: float32 [D], or [T, D] of tokens
    confidences      of a model that settles tokens among masks: by index into token_ids, their log-probabilities
    best, entropies  of one that draws its canvases anew: by index into token_ids, the most probable token, and the entropy in nats
                     of what was drawn from. ``logprobs`` are of the former
    """

    step_id: int
    token_ids: list[int]
    num_accepted: list[int] | None = None
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    drafts: list[list[int]] | None = None
    pooled: dict[int, np.ndarray] = field(default_factory=dict)
    confidences: list[float] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        accepted = None if self.num_accepted is None else pack(self.num_accepted)
        drafts = None if self.drafts is None else pack_lists(self.drafts)
        canvases = self.confidences, self.best, self.entropies
        rest = (self.logprobs, self.prompt_logprobs, self.failed, drafts, self.pooled, *canvases)
        return _step_output, (self.step_id, pack(self.token_ids), accepted, *rest)


def _new_request(
    seat: int, num_prompt: int, num_computed: int, request_id: str, tokens: Packed, blocks: tuple[Packed, Packed], *params: Any
) -> NewRequest:
    return NewRequest(seat, request_id, unpack(tokens), num_prompt, num_computed, unpack_lists(blocks), *params)


def _step_input(
    step_id: int,
    seats: Packed,
    num_tokens: Packed,
    num_logits: Packed,
    released: Packed,
    num_proposals: int,
    decoded: Packed | None,
    most_tokens: int,
    new: Sequence[NewRequest] = (),
    blocks: tuple[Packed, Packed, Packed, Packed] | None = None,
    copies: tuple[Packed, ...] = (),
    masked: Packed = b"",
    num_computed: Packed | None = None,
    drafts: tuple[Packed, Packed] | None = None,
    lora_loads: Sequence[tuple[int, str]] = (),
    images: Sequence[ImageItem] = (),
    forgotten: Sequence[bytes] = (),
    snapshots: tuple[Packed, ...] = (),
) -> StepInput:
    return StepInput(
        step_id,
        unpack(seats),
        unpack(num_tokens),
        unpack(num_logits),
        list(new),
        unpack(released),
        [] if blocks is None else list(zip(unpack(blocks[0]), unpack(blocks[1]), unpack_lists(blocks[2:]))),
        [(group, source, target) for group, source, target in unpack_columns(copies)],
        unpack(masked),
        None if num_computed is None else unpack(num_computed),
        None if drafts is None else unpack_lists(drafts),
        num_proposals,
        None if decoded is None else unpack(decoded),
        most_tokens,
        list(lora_loads),
        list(images),
        list(forgotten),
        [(seat, snapshot) for seat, snapshot in unpack_columns(snapshots)],
    )


def _step_output(
    step_id: int,
    tokens: Packed,
    accepted: Packed | None,
    logprobs: dict[int, TokenLogprobs],
    prompt_logprobs: dict[int, list[TokenLogprobs]],
    failed: dict[int, str],
    drafts: tuple[Packed, Packed] | None,
    pooled: dict[int, np.ndarray],
    *canvases: Any,
) -> StepOutput:
    num_accepted = None if accepted is None else unpack(accepted)
    proposed = None if drafts is None else unpack_lists(drafts)
    return StepOutput(step_id, unpack(tokens), num_accepted, logprobs, prompt_logprobs, failed, proposed, pooled, *canvases)
