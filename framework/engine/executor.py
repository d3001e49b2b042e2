"""The border between the engine (pure Python) and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..lora_request import LoRARequest
from ..op_times import OpTimes
from .kv_cache.spec import CacheGroup
from .step import StepInput, StepOutput

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np


class Handle(Protocol):
    """A submitted step."""

    def result(self) -> StepOutput:
        """Waits for the step and returns its output."""


class MaskedHandle(Handle, Protocol):
    """A step with ``StepInput.masked`` rows, of an executor with logits: it is computed, and sampled only when it is told how."""

    def sample(self, masks: np.ndarray) -> None:
        """The second phase, before the next step is submitted; returns at once where the device allows it. masks int32 [masked
        rows, ceil(V/32)]: bit t%32 of word t//32 set = the row may take token t."""


@dataclass(frozen=True)
class LoadedAdapter:
    """What an executor says of an adapter that it has read. key: digest of all that its outputs depend on; rank: the largest of its
    parts; num_bytes: on the host."""

    key: str
    rank: int
    num_bytes: int


class AdapterLoad(Protocol):
    """An adapter that is being read."""

    def done(self) -> bool:
        """Whether ``result`` returns at once."""

    def result(self) -> LoadedAdapter:
        """Waits for the end. Raises ValueError for an adapter that cannot be served, saying what was found and what would work."""


class Executor(Protocol):
    """Runs steps in the order of submission. Logits never leave it.

    groups      KV groups of the model, in the order of ``NewRequest.block_ids``
    num_blocks  blocks of the pool that all groups draw from, as many as fit the memory budget, the null block included
    vocab_size  size of the model's vocabulary
    max_model_len  longest sequence the model (or the config) allows
    num_stages  of the pipeline that a step passes through; with several, a request's next token is in another step than its last
    in_flight_steps  how many steps to have submitted unless the config says: more than 1 where ``submit`` returns at once
    num_drafts  most drafts of a row that a step can check, and make for the next (see StepInput); 0 = rows decode one token
    drafts_read_ahead    what it keeps of a token depends on the next token, too, so that a block is shared only with the next
    has_states  layers keep states, so that a prefix can be shared only where ``cache.state_snapshots`` kept one
    draft_max_model_len  longest sequence that what makes drafts can follow; None = as long as any
    weight_bytes  memory of the model's weights as they are held, and nominal_weight_bytes as their format says; 0 without a device
    call_times  what kernel calls take, where the config asks for it (profile, capture); None = it does not, or there are no calls

    An exception from ``submit`` or ``result`` ends the requests of that step, and the engine serves on, whatever part of the step
    was done; DeviceLostError (errors.py) ends the engine. What concerns one new request alone is told in
    ``StepOutput.failed``.
    """

    groups: tuple[CacheGroup, ...]
    num_blocks: int
    vocab_size: int
    max_model_len: int
    num_stages: int
    in_flight_steps: int
    num_drafts: int
    draft_max_model_len: int | None
    drafts_read_ahead: bool
    has_states: bool
    weight_bytes: int
    nominal_weight_bytes: int
    call_times: OpTimes | None

    def submit(self, step: StepInput) -> Handle:
        """Starts a step; returns at once where the device allows it."""

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """op -> impl, choice, origin, version, calls: read back from what was bound and called."""

    def shutdown(self) -> None:
        """Frees the device memory; the executor is of no use afterwards."""


class HoldsAdapters(Protocol):
    """An executor whose requests may have adapters."""

    def load_adapter(self, request: LoRARequest) -> AdapterLoad:
        """Begins to read an adapter into the host's memory, and returns at once. Steps name it by its key
        (``StepInput.lora_loads``) until it is dropped, as often as it was loaded."""

    def drop_adapter(self, key: str) -> None:
        """Frees the host's memory of an adapter that no later step loads; in a slot it stays as it is."""


@runtime_checkable
class PredictsSteps(Protocol):
    """An executor that knows how long steps take before it runs them."""

    def step_time(self, num_running: int, num_drafts: int) -> float:
        """Seconds from a step's end to the next, of steps that only decode, while so many requests run, with so many drafts checked
        and made for each."""


class HasRanks(Protocol):
    """An executor whose steps run in workers, which may end at any time (``ExecutorKind.has_workers``)."""

    def wait_idle(self, pipe: Connection) -> None:
        """While there is nothing to do: until there is something to read from ``pipe``. Raises DeviceLostError if a rank ends
        meanwhile, or gives no sign of life."""


class BalancesExperts(Protocol):
    """An executor whose ranks have some experts each, of ``parallel.eplb``."""

    def expert_loads(self) -> dict[int, list[int]]:
        """As ``Engine.expert_loads``."""

    def rebalance_experts(self) -> tuple[float, float]:
        """As ``Engine.rebalance_experts``."""
