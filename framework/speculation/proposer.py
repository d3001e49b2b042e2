"""What guesses on the host is to the rest of the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..engine.kv_cache.prefix import ExtraKeys
from .config import SpeculativeConfig


class HostProposer(Protocol):
    """Guesses a request's next tokens from the known ones. Of one engine, and called by one thread. What it is given is the
    engine's, and not to be changed."""

    def __init__(self, config: SpeculativeConfig) -> None: ...

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys) -> None:
        """A request is there, under an id that no other one has now. extra_keys: as Request has it; nothing of a request may be
        told to one with others (salts keep users apart)."""

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` drafts of what follows ``token_ids``; [] where nothing is to be guessed. token_ids: all known tokens,
        prompt and output; between the calls for a request they only grow."""

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
        """The request ended, however; or was never started. token_ids: all its tokens, those of its last step included; without,
        those of the last proposal are all there are."""
