"""What an engine counts, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine.engine import EngineStats


@dataclass(frozen=True)
class Metric:
    """A name as Prometheus knows it (without the ``_total`` of a counter), and the labels that tell its series apart."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Counter(Metric):
    """A total since the start."""

    value: int


@dataclass(frozen=True)
class Gauge(Metric):
    """The state now."""

    value: float


def engine_metrics(stats: EngineStats, model_name: str) -> list[Metric]:
    """The statistics of one engine. Prefix cache queries and hits are in tokens; ``kv_cache_usage_perc`` is a fraction."""
    labels = {"model_name": model_name, "engine": "0"}
    gauges = {
        "num_requests_running": stats.num_running,
        "num_requests_waiting": stats.num_waiting,
        "kv_cache_usage_perc": stats.kv_usage,
    }
    counters = {
        "num_preemptions": stats.num_preemptions,
        "prefix_cache_queries": stats.prefix_query_tokens,
        "prefix_cache_hits": stats.prefix_hit_tokens,
        "prompt_tokens": stats.num_prompt_tokens,
        "generation_tokens": stats.num_output_tokens,
    }
    return [
        *(Gauge(f"vllm:{name}", labels, value) for name, value in gauges.items()),
        *(Counter(f"vllm:{name}", labels, value) for name, value in counters.items()),
    ]
