"""Which part of a model lives in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import ParallelConfig

if TYPE_CHECKING:
    from .expert_map import ExpertMap


@dataclass(frozen=True)
class Ranks:
    """One kind of parallelism: this process is number ``rank`` of ``size``. group: through which they talk
    (``triton_kernels.group.Group``); None of one, and where nobody computes."""

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, compare=False)

    def part(self, total: int) -> range:
        """This rank's share of ``total`` things in order; the first ranks take one more where it does not divide."""
        each, rest = divmod(total, self.size)
        start = self.rank * each + min(self.rank, rest)
        return range(start, start + each + (self.rank < rest))


@dataclass(frozen=True)
class Parallel:
    """Tensor, pipeline, expert and data parallelism; size 1 each unless told otherwise. Experts are spread over the ranks of
    ``tp``, or over those of ``dp`` and ``tp`` together, which then take their steps together.

    experts  which of them each rank of ``ep`` has; None: its share of them in their order, for good
    """

    tp: Ranks = field(default_factory=Ranks)
    pp: Ranks = field(default_factory=Ranks)
    ep: Ranks = field(default_factory=Ranks)
    dp: Ranks = field(default_factory=Ranks)
    experts: ExpertMap | None = None

    @property
    def sizes(self) -> ParallelConfig:
        """As a configuration has them."""
        redundant = 0 if self.experts is None else self.experts.num_redundant
        return ParallelConfig(self.tp.size, self.pp.size, self.dp.size, self.ep.size, redundant_experts=redundant)
