"""Suffix decoding (Oliaro et al., arXiv 2411.04975): what most often followed the last tokens in the request's own text, or in the
outputs of earlier requests, follows again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from ..engine.kv_cache.prefix import ExtraKeys
from .config import SpeculativeConfig
from .suffix_tree import Drafts, SuffixTree


class Suffix:
    """A tree for each request, of its prompt and output, and trees of the outputs of the last requests that ended, the oldest of
    which gives way: one for each salt, so that nobody sees by its drafts what those with another one were told. Of the two, the
    drafts of which more are expected to be right."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._depth = config.suffix_decoding_max_tree_depth
        self._max_cached = config.suffix_decoding_max_cached_requests
        self._min_probability = config.suffix_decoding_min_token_prob
        factor = config.suffix_decoding_max_spec_factor
        limits = [(int(min(n * factor, self._depth - n)), n) for n in range(1, self._depth)]
        self._limits = [(n, limit) for limit, n in sorted(limits, reverse=True)]
        self._requests: dict[str, _Text] = {}
        self._outputs: dict[ExtraKeys, SuffixTree] = {}
        self._cached: dict[int, ExtraKeys] = {}
        self._numbers = count()

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys = ()) -> None:
        self._requests[request_id] = _Text(self._depth, len(prompt_token_ids), extra_keys)

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        text = self._requests[request_id]
        text.extend(token_ids)
        end = text.tokens[1 - self._depth :]
        own = text.tree.drafts(end, self._limits, most, self._min_probability)
        tree = self._outputs.get(text.extra_keys)
        others = Drafts() if tree is None else tree.drafts(end, self._limits, most, self._min_probability)
        return (others if others.score > own.score else own).token_ids

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
        text = self._requests.pop(request_id, None)
        if text is None or not self._max_cached:
            return
        output = list(token_ids or text.tokens)[text.num_prompt :]
        if not output:
            return
        number = next(self._numbers)
        self._cached[number] = text.extra_keys
        self._outputs.setdefault(text.extra_keys, SuffixTree(self._depth)).add(number, output)
        if len(self._cached) > self._max_cached:
            oldest = next(iter(self._cached))
            tree = self._outputs[extra_keys := self._cached.pop(oldest)]
            tree.remove(oldest)
            if not tree.texts:
                del self._outputs[extra_keys]


class _Text:
    """A request's tokens, and the tree of their ends."""

    def __init__(self, depth: int, num_prompt: int, extra_keys: ExtraKeys) -> None:
        self.tree, self.num_prompt, self.extra_keys = SuffixTree(depth), num_prompt, extra_keys
        self._growing = self.tree.open(0)
        self.tokens = self.tree.texts[0]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Takes in what ``token_ids`` has grown by."""
        for token in token_ids[len(self.tokens) :]:
            self._growing = self.tree.append(0, token, self._growing)
