"""Tokens out of thin air: measures the engine alone, and checks that it keeps the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kv_cache.spec import CacheGroup, PagedKV
from ..step import StepInput, StepOutput
from .mirror import Mirror
from .pseudo import pseudo_tokens

_DEFAULT_GROUPS = (CacheGroup(PagedKV(1, 64, 64, "float32"), (0,)),)


class NullHandle:
    """A step that computes its tokens when asked for them."""

    __slots__ = ("_compute",)

    def __init__(self, compute: Callable[[], StepOutput]) -> None:
        self._compute = compute

    def result(self) -> StepOutput:
        return self._compute()


class NullExecutor:
    """No model, no tensors, no time. A token is a function of the request's seed and the token's position, so that it does not
    depend on the batch.

    verify  keep a mirror of slots, block tables and cache contents: every step is checked against the protocol, and a token is
            a function of the cache contents that its row can see, so that one wrong block changes it (slow)
    """

    def __init__(self, num_slots: int, num_blocks: int, block_size: int = 16, vocab_size: int = 32000, max_model_len: int = 1 << 17,
                 groups: tuple[CacheGroup, ...] = _DEFAULT_GROUPS, verify: bool = False) -> None:  # fmt: skip
        self.groups, self.num_blocks, self.vocab_size, self.max_model_len = groups, num_blocks, vocab_size, max_model_len
        self._seeds = np.zeros(num_slots, dtype=np.uint64)
        self._lengths = np.zeros(num_slots, dtype=np.uint64)
        self._mirror = Mirror(num_slots, num_blocks, block_size, vocab_size, groups) if verify else None

    def submit(self, step: StepInput) -> NullHandle:
        if self._mirror is not None:
            output = self._mirror.apply(step)
        else:
            output = StepOutput(step.step_id, self._tokens(step))
        return NullHandle(lambda: output)

    def plan_report(self) -> dict[str, dict[str, Any]]:
        return {}

    def shutdown(self) -> None:
        return None

    def _tokens(self, step: StepInput) -> list[int]:
        for request in step.new:
            assert request.sampling.seed is not None
            self._seeds[request.slot] = request.sampling.seed & (2**64 - 1)
            self._lengths[request.slot] = request.num_computed_tokens
        slots = np.array(step.slots)
        self._lengths[slots] += np.array(step.num_tokens, dtype=np.uint64)
        sampling = slots if all(step.samples) else slots[np.array(step.samples)]
        return pseudo_tokens(self._seeds[sampling], self._lengths[sampling], self.vocab_size).tolist()
