"""What a grammar leaves no choice about: the only method of which every draft is nearly sure."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.kv_cache.prefix import ExtraKeys
from .config import SpeculativeConfig


class Forced:
    """Guesses nothing. Of requests with structured output, the engine takes the tokens that their grammars force, before it asks a
    proposer; with this one these are all drafts there are."""

    def __init__(self, config: SpeculativeConfig) -> None: ...

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys = ()) -> None: ...

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        """As HostProposer has it."""
        return []

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None: ...
