"""One sequence of tokens on its way through the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from ..pooling_params import PoolingParams
from ..sampling_params import SamplingParams
from .encoding import EncoderInput

if TYPE_CHECKING:
    from ..multimodal.items import ImageItem
    from .step import TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]

FAILED_ROW: Final = -1
"""What the executor returns for a row whose logits were NaN or all -inf; ends the request."""


class Status(IntEnum):
    """Where a request is. WAITING: known, holds nothing. RUNNING: holds a seat and blocks. PREEMPTED: lost them, will resume."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED = 3


@dataclass
class Canvas:
    """What stands behind a request's tokens, where each pass draws it anew: its tokens for the next pass, how many passes
    went over it, and the most probable tokens of the last ones."""

    tokens: list[int]
    best: deque[list[int]]
    num_passes: int = 0


class Request:
    """A prompt and what was generated from it. Completions of one user's request with n > 1 are a Request each.

    request_id      {number of the completion}_{the user's id}: so that no two that run have the same
    token_ids       prompt and output, as far as the host knows them
    num_tokens      the same count, plus the tokens that steps in flight will sample (placeholders)
    num_computed    tokens whose keys and values the cache holds once all submitted steps are done
    max_total       length at which the request ends
    min_total       length from which on a stop token counts
    stop_ids        tokens that end the request, FAILED_ROW among them; where a grammar allows one, it ends whatever else was asked
    is_ready        asked before the request takes a seat; until it says yes, those behind it go first. None: always
    extra_keys      (first token, bytes): what else than tokens the cache content depends on from that token on, ascending:
                    adapter and salt at 0, media where they stand
    order           sort key of the policy: smaller goes first
    seat            place in the executor while RUNNING, else -1
    blocks          per KV group, the block table
    capacity        tokens that the blocks can hold
    block_hashes    prefix hashes of the full blocks, as far as computed
    num_hashed      leading blocks that were offered to the prefix cache
    snapshot        of the states that are kept of prefixes, which it starts from; -1: none
    snapshot_ends   numbers of tokens, whole blocks, at which a chunk of its prompt ends so that their states can be kept, ascending
    next_event      number of computed tokens at which a step's commit has more to do than to append a token
    num_proposed    drafts that its last step in flight, or the last that came back, leaves in the executor
    was_right       all its drafts were right in the last step that had room for any
    num_stale_steps steps in flight from before a preemption; the request may not resume before they have delivered
    leader          completion 0 of the same prompt, whose prompt blocks this one will share
    followers       requests that wait for this one's prompt
    pooling         what is to be made of its prompt, which it then ends with; None: it generates
    adapter         an ``adapter_slots.Adapter`` that it is served with; None: the model as it is
    images          in its prompt, in order
    encoder_input   what an encoder reads of it; None: there is none
    settled         of a model of block diffusion: what stands behind token_ids up to the end of their canvas, with masks between;
                    empty: nothing is settled there yet
    told            log-probabilities of what is settled behind token_ids, by its place, of a request that asked for them
    canvas          of one that draws its canvases anew: the one behind token_ids, as far as passes went over it; None: none did
    sample          where the engine collects the request's output
    """

    __slots__ = (
        "adapter",
        "arrival_s",
        "block_hashes",
        "blocks",
        "canvas",
        "capacity",
        "encoder_input",
        "extra_keys",
        "finish_reason",
        "followers",
        "images",
        "is_ready",
        "leader",
        "max_total",
        "min_total",
        "next_event",
        "num_cached_tokens",
        "num_computed",
        "num_hashed",
        "num_preemptions",
        "num_prompt_tokens",
        "num_proposed",
        "num_stale_steps",
        "num_tokens",
        "order",
        "params",
        "pooling",
        "priority",
        "request_id",
        "sample",
        "seat",
        "settled",
        "snapshot",
        "snapshot_ends",
        "status",
        "stop_ids",
        "stop_reason",
        "token_ids",
        "told",
        "was_right",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        max_total: int,
        arrival_s: float = 0.0,
        priority: int = 0,
        extra_keys: tuple[tuple[int, bytes], ...] = (),
        pooling: PoolingParams | None = None,
    ) -> None:
        self.request_id, self.params, self.arrival_s, self.priority = request_id, params, arrival_s, priority
        self.pooling = pooling
        self.adapter: Any = None
        self.images: tuple[ImageItem, ...] = ()
        self.encoder_input: EncoderInput | None = None
        self.settled: list[int] = []
        self.told: dict[int, TokenLogprobs] = {}
        self.canvas: Canvas | None = None
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = self.num_tokens = len(prompt_token_ids)
        self.max_total = max_total
        free = params.structured_outputs is None
        self.min_total = self.num_prompt_tokens + params.min_tokens * free
        ending = params.stop_token_ids if params.ignore_eos and free else params.all_stop_token_ids
        self.stop_ids = frozenset((*(ending or ()), FAILED_ROW))
        self.is_ready: Callable[[], bool] | None = None
        self.extra_keys = extra_keys
        self.order: tuple[float, ...] = ()
        self.status = Status.WAITING
        self.seat = -1
        self.num_computed = self.capacity = self.num_hashed = self.next_event = self.num_proposed = 0
        self.blocks: list[list[int]] = []
        self.block_hashes: list[bytes] = []
        self.snapshot = -1
        self.snapshot_ends: Sequence[int] = ()
        self.num_stale_steps = self.num_preemptions = 0
        self.was_right = False
        self.num_cached_tokens: int | None = None
        self.leader: Request | None = None
        self.followers: list[Request] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.sample: Any = None

    @property
    def num_encoded(self) -> int:
        """Vectors that the encoder gives for it."""
        return 0 if self.encoder_input is None else self.encoder_input.num_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated and known to the host."""
        return len(self.token_ids) - self.num_prompt_tokens

    def append(self, token_ids: list[int]) -> int:
        """Tokens that a step brought, up to the first that ends the request. Returns how many it got; FAILED_ROW is none."""
        for count, token in enumerate(token_ids, 1):
            self.token_ids.append(token)
            if (reason := self.ending()) is not None:
                return count - (reason == "error")
        return len(token_ids)

    def ending(self) -> FinishReason | None:
        """Why its last token ends it, if it does: FAILED_ROW, then end of sequence and stop tokens, then length."""
        token, length = self.token_ids[-1], len(self.token_ids)
        if token == FAILED_ROW:
            return "error"
        if token in self.stop_ids and length > self.min_total:
            return "stop"
        return "length" if length >= self.max_total else None

    def __lt__(self, other: Request) -> bool:
        return self.order < other.order

    def __repr__(self) -> str:
        return f"Request({self.request_id!r}, {self.status.name}, {self.num_computed}/{self.num_tokens} tokens)"
