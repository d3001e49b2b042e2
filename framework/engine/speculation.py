"""How the scheduler speculates: how many drafts a step checks, and who proposes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Depth(Protocol):
    """Chooses how many drafts each decoding request has checked in a step."""

    def of(self, num_running: int) -> int:
        """For a step of so many running requests; 0 = none."""


class HostProposer(Protocol):
    """Proposes drafts from tokens alone, which must be known: a request has one step in flight at most."""

    def start(self, request_id: str, prompt_token_ids: Sequence[int]) -> None:
        """A request that will ask."""

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        """What may follow ``token_ids``, the request's prompt and all of its output: at most ``most`` tokens, or none."""

    def stop(self, request_id: str) -> None:
        """A request that asks no more."""


@dataclass(frozen=True)
class FixedDepth:
    """The same number of drafts in every step."""

    num_drafts: int

    def of(self, num_running: int) -> int:
        return self.num_drafts


@dataclass(frozen=True)
class Speculation:
    """proposer: None where the executor makes the drafts, on its device, after the step before."""

    depth: Depth
    proposer: HostProposer | None = None
