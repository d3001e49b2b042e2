"""What the driver and the workers tell each other. A step goes to the workers as the StepInput that it is, and comes back as its
StepOutput; ``Failure`` (failures.py) is of the step that is its key, or of the worker's start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig

if TYPE_CHECKING:
    import numpy as np

    from ..engine.executor import Executor, LoadedAdapter
    from ..lora_request import LoRARequest


@dataclass(frozen=True)
class Place:
    """A worker's place among the ranks of one engine. Ranks of a stage follow each other.

    rank, size  of all
    tp          ranks per stage
    rendezvous  host:port of the ``torch.distributed.TCPStore`` that the driver keeps for them; empty: they need none
    """

    rank: int
    size: int
    tp: int = 1
    rendezvous: str = ""

    @property
    def stage(self) -> int:
        return self.rank // self.tp

    @property
    def num_stages(self) -> int:
        return self.size // self.tp

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def is_output(self) -> bool:
        """Whether the driver takes the steps' outputs from it: the first rank of the last stage."""
        return self.rank == self.size - self.tp


Factory = Callable[[EngineConfig, Place], "Executor"]
"""Makes the executor of a rank, in its worker. Picklable, unless workers are threads: then all share the one that was given."""


@dataclass(frozen=True)
class Start:
    """What a worker is started with."""

    place: Place
    config: EngineConfig
    factory: Factory


@dataclass
class Hello:
    """The first message of a worker. versions: of what must be equal everywhere."""

    versions: dict[str, str]


@dataclass
class Built:
    """The rank's executor stands. Configuration and kernel plan as the worker has them; facts: FACTS of its executor."""

    config: dict[str, str]
    plan: dict[str, dict[str, Any]]
    facts: dict[str, Any]


FACTS = (
    "groups",
    "num_blocks",
    "vocab_size",
    "max_model_len",
    "in_flight_steps",
    "num_drafts",
    "draft_max_model_len",
    "drafts_read_ahead",
    "weight_bytes",
    "nominal_weight_bytes",
)
"""Attributes of an executor, see engine/executor.py."""


@dataclass
class Masks:
    """The second phase of a step, see ``MaskedHandle.sample``."""

    step_id: int
    masks: np.ndarray


@dataclass
class LoadAdapter:
    """Asks for an AdapterRead, or a Failure, under the key of the load; steps go on meanwhile."""

    key: str
    request: LoRARequest


@dataclass
class AdapterRead:
    key: str
    loaded: LoadedAdapter


@dataclass
class DropAdapter:
    """As ``HoldsAdapters.drop_adapter``, in turn with the steps. ranks: of which."""

    key: str
    ranks: list[int]


@dataclass
class AskPlan:
    """Asks for a PlanReport, in turn with the steps."""


@dataclass
class PlanReport:
    plan: dict[str, dict[str, Any]]


@dataclass
class Ping:
    """Asks for a Pong at once, whatever runs: from a worker that is stopped or gone, none comes."""


@dataclass
class Pong:
    """The worker's process runs."""
