"""From a record of a run to numbers.

TTFT = first token - arrival (queueing included). TPOT = (last token - first token) / (number of output tokens - 1), absent
for one token. ITL = all gaps between tokens of a request, pooled. E2E = last token - arrival. Throughput counts from the
first arrival to the last token. Goodput = requests per second that meet every SLO; TPOT of a one-token completion counts as 0.
prefix_hit_rate_bound = what a cache that forgets nothing would find, as a trace's own names of blocks tell. ttft_priority_N: of the
requests of that priority, where there are several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .driver import RequestRecord, RunRecord

PERCENTILES = (50, 90, 99)


@dataclass
class SLOConfig:
    """Service-level objectives in seconds; None = no objective."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


def ttft_s(request: RequestRecord) -> float:
    """Time to first token; NaN without one."""
    return request.token_times_s[0] - request.arrival_s if request.token_times_s else math.nan


def tpot_s(request: RequestRecord) -> float:
    """Time per output token after the first; NaN with fewer than two."""
    times = request.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.nan


def e2e_s(request: RequestRecord) -> float:
    """Time from arrival to the last token; NaN without one."""
    return request.token_times_s[-1] - request.arrival_s if request.token_times_s else math.nan


def meets(request: RequestRecord, slo: SLOConfig) -> bool:
    """Whether a request was completed within every objective."""
    if not request.token_times_s:
        return False
    tpot = tpot_s(request)
    measured = ((ttft_s(request), slo.ttft_s), (0.0 if math.isnan(tpot) else tpot, slo.tpot_s), (e2e_s(request), slo.e2e_s))
    return all(limit is None or value <= limit for value, limit in measured)


def compute_metrics(run: RunRecord, slo: SLOConfig) -> dict[str, float]:
    """Name -> value; every name ends in its unit where it has one. What was not observed is absent, never zero."""
    served = [request for request in run.requests if request.status == "ok" and request.token_times_s]
    statuses = Counter(request.status for request in run.requests)
    metrics: dict[str, float] = {
        "num_completed": len(served),
        "num_refused": statuses["refused"],
        "num_failed": statuses["failed"],
        "num_prompt_tokens": sum(request.num_prompt_tokens for request in served),
        "num_output_tokens": sum(len(request.token_times_s) for request in served),
    }
    if run.steps:
        metrics["num_steps"] = len(run.steps)
        metrics["num_preemptions"] = run.num_preemptions
        metrics["num_chunked_prefills"] = run.num_chunked_prefills
    if run.prefix_query_tokens:
        metrics["prefix_hit_rate"] = run.prefix_hit_tokens / run.prefix_query_tokens
    if known := [request for request in run.requests if request.num_known_tokens is not None]:
        num_known = sum(request.num_known_tokens or 0 for request in known)
        metrics["prefix_hit_rate_bound"] = num_known / sum(request.num_prompt_tokens for request in known)
    if not served:
        return metrics
    gaps = [np.diff(request.token_times_s) for request in served]
    for name, values in (
        ("ttft", [ttft_s(request) for request in served]),
        ("tpot", [tpot_s(request) for request in served if len(request.token_times_s) > 1]),
        ("itl", np.concatenate(gaps)),
        ("e2e", [e2e_s(request) for request in served]),
    ):
        metrics.update(_distribution(name, values))
    priorities = sorted({request.priority for request in served})
    for priority in priorities if len(priorities) > 1 else ():
        metrics.update(_distribution(f"ttft_priority_{priority}", [ttft_s(r) for r in served if r.priority == priority]))
    duration_s = max(r.token_times_s[-1] for r in served) - min(r.arrival_s for r in run.requests)
    metrics["duration_s"] = duration_s
    if duration_s > 0:
        num_good = sum(meets(request, slo) for request in served)
        metrics["requests_per_s"] = len(served) / duration_s
        metrics["goodput_per_s"] = num_good / duration_s
        metrics["output_tokens_per_s"] = metrics["num_output_tokens"] / duration_s
        metrics["total_tokens_per_s"] = (metrics["num_output_tokens"] + metrics["num_prompt_tokens"]) / duration_s
    if metrics.get("tpot_mean_s"):
        metrics["tokens_per_s_per_user"] = 1.0 / metrics["tpot_mean_s"]
    metrics.update(_kv_usage(run))
    return metrics


def _distribution(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    percentiles = {f"{name}_p{p}_s": float(np.percentile(values, p)) for p in PERCENTILES}
    return {f"{name}_mean_s": float(np.mean(values)), **percentiles}


def _kv_usage(run: RunRecord) -> dict[str, float]:
    """The mean is over time: a step counts as long as its state lasted, and idle time between steps counts as it was left."""
    if not run.steps:
        return {}
    usage = np.array([step.kv_usage for step in run.steps])
    weights = np.diff([step.end_s for step in run.steps])
    mean = np.average(usage[:-1], weights=weights) if weights.sum() > 0 else usage.mean()
    return {"kv_usage_mean": float(mean), "kv_usage_max": float(usage.max())}
