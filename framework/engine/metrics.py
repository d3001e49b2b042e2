"""What an engine observes of its requests and steps: plain numbers, gathered as they come and sorted into buckets later, many at a
time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Any, get_args

import numpy as np

from ..config import CacheConfig
from .kv_cache.spec import CacheGroup
from .request import FinishReason, Request
from .scheduled import Committed, ScheduledStep, SchedulerCounters

FOLD_AT = 32
"""So many completions end before they are sorted into buckets, unless somebody asks earlier."""
_BELOW_10_MS = (0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.0075)
_GAP_S = (*_BELOW_10_MS, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_FIRST_S = (*_BELOW_10_MS, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_UP_TO_1_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.5, 0.8, 1)
_REQUEST_S = (*_BELOW_10_MS, *_UP_TO_1_S, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
_FEW = (0, 1, 2, 5, 10, 20, 50, 100)
_PARTS = ("queue", "inference", "prefill", "decode")
_LENGTHS = (
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_max_tokens",
    "request_prefill_kv_computed_tokens",
    "request_max_num_generation_tokens",
)


class Buckets:
    """How many values fell where. bounds: inclusive upper ends of the buckets; counts: per bucket, and of what is above all."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self.total = 0.0

    def add(self, values: np.ndarray) -> None:
        """values: any number of them."""
        self.counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts))
        self.total += float(values.sum())


@dataclass(frozen=True)
class DraftCounts:
    """Of speculative decoding, by position of the draft in its row: rows that had one there, and rows that accepted it."""

    drafts: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    @classmethod
    def of(cls, num_drafts: Sequence[int], num_accepted: Sequence[int]) -> DraftCounts:
        """Of a step. num_drafts: per row; num_accepted: how many of them were right, without the token after them."""
        most = max(num_drafts, default=0)
        found = (np.bincount(counts, minlength=most + 1)[:0:-1].cumsum()[::-1] for counts in (num_drafts, num_accepted) if most)
        return cls(*(tuple(counts.tolist()) for counts in found))

    def __add__(self, other: DraftCounts) -> DraftCounts:
        pairs = (self.drafts, other.drafts), (self.accepted, other.accepted)
        return DraftCounts(*(tuple(a + b for a, b in zip_longest(*pair, fillvalue=0)) for pair in pairs))

    def since(self, before: DraftCounts) -> DraftCounts:
        """What came after those."""
        return self + DraftCounts(tuple(-n for n in before.drafts), tuple(-n for n in before.accepted))


@dataclass(frozen=True)
class EngineInfo:
    """What an engine was built as; it does not change. Sizes and groups as ``Executor`` has them, steps in flight as ``Engine``,
    whether prefixes are shared as it was settled."""

    max_model_len: int
    vocab_size: int
    block_size: int
    num_blocks: int
    weight_bytes: int
    groups: tuple[CacheGroup, ...]
    in_flight_steps: int
    prefix_caching: bool


@dataclass
class EngineStats(SchedulerCounters):
    """The state now, and totals since the start. ``num_not_ready``: of those that wait, how many would not start even if there
    were room; ``kv_usage``: fraction of the blocks that requests hold; ``drafts``: those that steps checked; of images as
    ``EncoderCache`` has them."""

    num_running: int = 0
    num_waiting: int = 0
    num_not_ready: int = 0
    kv_usage: float = 0.0
    num_image_queries: int = 0
    num_image_hits: int = 0
    num_images_encoded: int = 0
    drafts: DraftCounts = field(default_factory=DraftCounts)


def total_stats(found: Sequence[EngineStats]) -> EngineStats:
    """Of several engines together; ``kv_usage`` is their mean."""
    totals = {each.name: reduce(add, (getattr(stats, each.name) for stats in found)) for each in fields(EngineStats)}
    return EngineStats(**{**totals, "kv_usage": totals["kv_usage"] / len(found)})


@dataclass(frozen=True)
class EngineMetrics:
    """All that an engine counted since its start, and its state now.

    finished    finish reason -> completions that ended so
    corrupted   completions that ended because their logits were NaN or all -inf
    histograms  name without a prefix -> values, in seconds or tokens
    kernels     op -> what serves it, as ``plan_report`` has it
    cache       see ``cache_settings``
    structured  name of a library of grammars -> completions that it had a grammar for
    adapters    most in one step, names of those that completions wait for, and of those that run; None: there are none
    """

    stats: EngineStats
    finished: dict[FinishReason, int]
    corrupted: int
    histograms: dict[str, Buckets]
    kernels: dict[str, dict[str, Any]]
    cache: dict[str, Any]
    structured: dict[str, int]
    adapters: tuple[int, list[str], list[str]] | None = None


def cache_settings(cache: CacheConfig, num_blocks: int, max_model_len: int) -> dict[str, Any]:
    """What the KV cache is configured as, under vLLM's names, and what came of it."""
    num_tokens = num_blocks * cache.block_size
    return {
        "block_size": cache.block_size,
        "cache_dtype": cache.dtype,
        "enable_prefix_caching": cache.prefix_caching,
        "gpu_memory_utilization": cache.memory_fraction,
        "num_gpu_blocks": num_blocks,
        "num_gpu_blocks_override": cache.num_blocks,
        "kv_cache_memory_bytes": cache.memory_bytes,
        "kv_cache_size_tokens": num_tokens,
        "kv_cache_max_concurrency": round(num_tokens / max_model_len, 2),
    }


class Recorder:
    """Of one engine. Times are vLLM's: a request waits until it is first scheduled, prefills until its first token, decodes until
    its last. Latencies and lengths are of completions that ended by themselves; times of tokens are of all."""

    def __init__(self, max_model_len: int) -> None:
        tokens = [mantissa * 10**power for power in range(9) for mantissa in (1, 2, 5) if mantissa * 10**power <= max_model_len]
        bounds: Mapping[str, Sequence[float]] = {
            "time_to_first_token_seconds": _FIRST_S,
            "inter_token_latency_seconds": _GAP_S,
            "request_time_per_output_token_seconds": _GAP_S,
            **dict.fromkeys(("e2e_request_latency_seconds", *(f"request_{part}_time_seconds" for part in _PARTS)), _REQUEST_S),
            "iteration_tokens_total": _STEP_TOKENS,
            **dict.fromkeys(_LENGTHS, tokens),
            "request_params_n": (1, 2, 5, 10, 20),
            "request_num_preemptions": _FEW,
        }
        self._histograms = {name: Buckets(ends) for name, ends in bounds.items()}
        self.finished: dict[FinishReason, int] = dict.fromkeys(get_args(FinishReason), 0)
        self.corrupted = 0
        self._drafts: Counter[tuple[int, int]] = Counter()
        self._first_s: list[float] = []
        self._step_tokens: list[int] = []
        self._gaps: list[np.ndarray] = []
        self._ended: list[tuple[float, ...]] = []
        self._groups: list[tuple[int, int]] = []

    def step(self, scheduled: ScheduledStep, committed: Committed) -> None:
        """Takes a step that came back."""
        num_tokens = len(committed.requests) + sum(count - 1 for count in committed.num_new.values())
        for chunk in scheduled.chunks:  # of tokens and guesses behind a prompt, what came out counts
            num_tokens += max(chunk.num_tokens - max(chunk.end - chunk.request.num_prompt_tokens, 0), 0)
        self._step_tokens.append(num_tokens)
        if len(self._step_tokens) == 1024:
            self._fold()

    def observe(self, num_drafts: Sequence[int], num_accepted: Sequence[int]) -> None:
        """Takes the drafts of a step that came back, as ``DraftCounts.of``; rows without any may be among them or not."""
        self._drafts.update(zip(num_drafts, num_accepted))

    @property
    def drafts(self) -> DraftCounts:
        """Of all steps so far."""
        most = max((drafts for drafts, _ in self._drafts), default=0)
        pairs = self._drafts.items()
        return DraftCounts(
            tuple(sum(rows for (drafts, _), rows in pairs if drafts > nth) for nth in range(most)),
            tuple(sum(rows for (_, accepted), rows in pairs if accepted > nth) for nth in range(most)),
        )

    def ended(self, request: Request, now_s: float) -> None:
        """Takes a completion that ended at ``now_s``."""
        sample, group = request.sample, request.sample.group
        reason, num_tokens = request.finish_reason, request.num_output_tokens
        assert reason is not None
        self.finished[reason] += 1
        self._take_times(request)
        if reason in ("stop", "length") and sample.times and (scheduled_s := group.metrics.first_scheduled_s) is not None:
            max_tokens = request.params.max_tokens or request.max_total - request.num_prompt_tokens
            times = (group.metrics.arrival_s, scheduled_s, sample.times[0], sample.times[-1], now_s)
            lengths = (request.num_prompt_tokens, request.num_cached_tokens or 0, num_tokens, max_tokens)
            self._ended.append((*times, *lengths, request.num_preemptions))
            if not group.num_unfinished:
                self._groups.append((len(group.samples), max(other.request.num_output_tokens for other in group.samples)))
        if len(self._ended) >= FOLD_AT:
            self._fold()

    def histograms(self, running: Iterable[Request]) -> dict[str, Buckets]:
        """All so far, with the tokens of completions that run."""
        for request in running:
            self._take_times(request)
        self._fold()
        return deepcopy(self._histograms)

    def _take_times(self, request: Request) -> None:
        """Of the tokens that were not taken yet."""
        sample, times = request.sample, request.sample.times
        if times and not sample.num_timed:
            self._first_s.append(times[0] - request.arrival_s)
        if len(times) > max(sample.num_timed, 1):
            self._gaps.append(np.diff(times[max(sample.num_timed - 1, 0) :]))
        sample.num_timed = len(times)

    def _fold(self) -> None:
        new: dict[str, np.ndarray | list[float] | list[int]] = {
            "time_to_first_token_seconds": self._first_s,
            "iteration_tokens_total": self._step_tokens,
        }
        if self._gaps:
            new["inter_token_latency_seconds"] = np.concatenate(self._gaps)
        if self._ended:
            arrival, scheduled, first, last, end, prompt, cached, tokens, max_tokens, preemptions = np.array(self._ended).T
            several = tokens > 1
            new["request_time_per_output_token_seconds"] = (last - first)[several] / (tokens - 1)[several]
            new["e2e_request_latency_seconds"] = end - arrival
            parts = (scheduled - arrival, last - scheduled, first - scheduled, last - first)
            new |= {f"request_{part}_time_seconds": values for part, values in zip(_PARTS, parts)}
            new |= dict(zip(_LENGTHS, (prompt, tokens, max_tokens, prompt - cached)))
            new["request_num_preemptions"] = preemptions
        if self._groups:
            new["request_params_n"], new["request_max_num_generation_tokens"] = np.array(self._groups).T
        for name, values in new.items():
            self._histograms[name].add(np.asarray(values, dtype=np.float64))
        self._first_s, self._step_tokens, self._gaps, self._ended, self._groups = [], [], [], [], []
