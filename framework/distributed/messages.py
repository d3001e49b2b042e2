"""What the driver and the workers tell each other. A step goes to the workers as the StepInput that it is, and comes back as its
StepOutput; ``Failure`` (failures.py) is of the step or the question that is its key, or of the worker's start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig

if TYPE_CHECKING:
    import numpy as np

    from ..engine.executor import Executor
    from ..engine.step import StepInput
    from ..lora_request import LoRARequest
    from ..models.expert_map import ExpertMap


@dataclass(frozen=True)
class Place:
    """A worker's place among the ranks of one engine. Those of a scheduler follow each other, and of these those of a stage.

    rank, size  of all
    tp          ranks per stage
    dp          schedulers, each with as many ranks
    rendezvous  host:port of the ``torch.distributed.TCPStore`` that the driver keeps for them; empty: they need none
    """

    rank: int
    size: int
    tp: int = 1
    rendezvous: str = ""
    dp: int = 1

    @property
    def num_own(self) -> int:
        """Ranks of a scheduler."""
        return self.size // self.dp

    @property
    def dp_rank(self) -> int:
        """Its scheduler."""
        return self.rank // self.num_own

    @property
    def stage(self) -> int:
        return self.rank % self.num_own // self.tp

    @property
    def num_stages(self) -> int:
        return self.num_own // self.tp

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def peers(self) -> tuple[range, range, range]:
        """Ranks that share its tensors, those at its place in all stages, and those at its place of all schedulers."""
        first, own = self.rank - self.tp_rank, self.dp_rank * self.num_own
        stage, stages = range(first, first + self.tp), range(own + self.tp_rank, own + self.num_own, self.tp)
        return stage, stages, range(self.rank % self.num_own, self.size, self.num_own)

    @property
    def is_output(self) -> bool:
        """Whether the driver takes its scheduler's outputs from it: the first rank of the last stage."""
        return self.rank % self.num_own == self.num_own - self.tp


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
    "has_states",
    "weight_bytes",
    "nominal_weight_bytes",
)
"""Attributes of an executor, see engine/executor.py."""


@dataclass
class Steps:
    """One step of every scheduler, which their ranks take together."""

    step_id: int
    inputs: list[StepInput]


@dataclass
class Masks:
    """The second phase of a scheduler's step, see ``MaskedHandle.sample``."""

    step_id: int
    masks: np.ndarray
    scheduler: int = 0


@dataclass
class LoadAdapter:
    """Asks for the LoadedAdapter; steps go on meanwhile."""

    key: str
    request: LoRARequest


@dataclass
class DropAdapter:
    """As ``HoldsAdapters.drop_adapter``, in turn with the steps. ranks: of which."""

    key: str
    ranks: list[int]


@dataclass
class AskPlan:
    """Asks for the executor's ``plan_report``, in turn with the steps."""

    key: str


@dataclass
class AskLoads:
    """In turn with the steps, asks for: layer -> how often each of its experts was chosen, by what the rank computed since they
    moved."""

    key: str


@dataclass
class Answer:
    """What was asked for under the key; a Failure under that key says why there is none."""

    key: str
    value: Any


@dataclass
class MoveExperts:
    """In turn with the steps, the experts move to where the map says."""

    wanted: ExpertMap


@dataclass
class Ping:
    """Asks for a Pong at once, whatever runs: from a worker that is stopped or gone, none comes."""


@dataclass
class Pong:
    """The worker's process runs."""
