"""Prompt lookup: what followed the last tokens where they stood before follows again (Saxena, prompt-lookup-decoding)."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.kv_cache.prefix import ExtraKeys
from .config import SpeculativeConfig


class Ngram:
    """The longest end of the text, of ``prompt_lookup_min`` to ``_max`` tokens, that it holds before; the leftmost or rightmost
    such place. A call takes time by the tokens that are new since the last one, not by the length of the text."""

    def __init__(self, config: SpeculativeConfig) -> None:
        least, most = config.prompt_lookup_lengths
        self._lengths = range(most, least - 1, -1)
        self._rightmost = config.prompt_lookup_match == "rightmost"
        self._indexes: dict[str, _Index] = {}

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys = ()) -> None:
        self._indexes[request_id] = _Index(self._lengths, self._rightmost)

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        index = self._indexes[request_id]
        index.extend(token_ids)
        found = index.find(token_ids)
        return [] if found is None else list(token_ids[found : found + most])

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
        self._indexes.pop(request_id, None)


class _Index:
    """Of one text: per length, tokens -> where they end, for all that are followed by something."""

    def __init__(self, lengths: range, rightmost: bool) -> None:
        self._ends: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in lengths}
        self._rightmost, self._num_read = rightmost, 0

    def extend(self, token_ids: Sequence[int]) -> None:
        """Takes in what ``token_ids`` has grown by."""
        for length, ends in self._ends.items():
            first = max(self._num_read, length)
            near = token_ids[first - length : -1]
            for end in range(first, len(token_ids)):
                key = tuple(near[end - first : end - first + length])
                if self._rightmost:
                    ends[key] = end
                else:
                    ends.setdefault(key, end)
        self._num_read = max(self._num_read, len(token_ids))

    def find(self, token_ids: Sequence[int]) -> int | None:
        """Where the text goes on behind the place that looks as its end does."""
        for length, ends in self._ends.items():
            if len(token_ids) > length and (end := ends.get(tuple(token_ids[-length:]))) is not None:
                return end
        return None
