"""Suffix decoding (Oliaro et al., arXiv 2411.04975): what most often followed the last tokens in the request's own text, or in the
outputs of earlier requests, follows again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from .config import SpeculativeConfig
from .suffix_tree import SuffixTree


class Suffix:
    """A tree for each request, of its prompt and output, and one of the outputs of the last requests that ended, the oldest of
    which gives way. Of the two, the drafts of which more are expected to be right."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._depth = config.suffix_decoding_max_tree_depth
        self._max_cached = config.suffix_decoding_max_cached_requests
        self._min_probability = config.suffix_decoding_min_token_prob
        factor = config.suffix_decoding_max_spec_factor
        limits = [(int(min(n * factor, self._depth - n)), n) for n in range(1, self._depth)]
        self._limits = [(n, limit) for limit, n in sorted(limits, reverse=True)]
        self._requests: dict[str, _Text] = {}
        self._outputs = SuffixTree(self._depth)
        self._numbers = count()

    def start(self, request_id: str, prompt_token_ids: Sequence[int]) -> None:
        self._requests[request_id] = _Text(self._depth, len(prompt_token_ids))

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        text = self._requests[request_id]
        text.extend(token_ids)
        end = text.tokens[1 - self._depth :]
        own = text.tree.drafts(end, self._limits, most, self._min_probability)
        others = self._outputs.drafts(end, self._limits, most, self._min_probability)
        return (others if others.score > own.score else own).token_ids

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
        text = self._requests.pop(request_id, None)
        if text is None or not self._max_cached:
            return
        output = list(token_ids or text.tokens)[text.num_prompt :]
        if output:
            self._outputs.add(next(self._numbers), output)
        if len(self._outputs.texts) > self._max_cached:
            self._outputs.remove(next(iter(self._outputs.texts)))


class _Text:
    """A request's tokens, and the tree of their ends."""

    def __init__(self, depth: int, num_prompt: int) -> None:
        self.tree, self.num_prompt = SuffixTree(depth), num_prompt
        self._growing = self.tree.open(0)
        self.tokens = self.tree.texts[0]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Takes in what ``token_ids`` has grown by."""
        for token in token_ids[len(self.tokens) :]:
            self._growing = self.tree.append(0, token, self._growing)
