"""How the scheduler speculates."""

from __future__ import annotations

from dataclasses import dataclass

from ..speculation.depth import Depth
from ..speculation.proposer import HostProposer


@dataclass(frozen=True)
class Speculation:
    """depth says how many drafts of a request a step checks. proposer: None where the executor makes them, on its device, after the
    step before. max_model_len: longest sequence that it can follow; None = as long as any."""

    depth: Depth
    proposer: HostProposer | None = None
    max_model_len: int | None = None
