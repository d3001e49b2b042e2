"""From a record of a run to numbers.

TTFT = first token - arrival (queueing included). TPOT = (last token - first token) / (number of output tokens - 1), absent
for one token. ITL = all gaps between tokens of a request, pooled. E2E = last token - arrival. Throughput counts from the
first arrival to the last token. Goodput = requests per second that meet every SLO; TPOT of a one-token completion counts as 0.
Of several engines, requests and time are pooled; a maximum is that of one engine.
prefix_hit_rate_bound = what a cache that forgets nothing would find, as a trace's own names of blocks tell. ttft_priority_N: of the
requests of that priority, where there are several.
encoder_hit_rate = images whose embeddings were there when a request came to them / images that requests came to. images_per_s: of
completed requests.
num_encoder_tokens, encoder_tokens_per_s: what encoders of encoder-decoders gave; prompt tokens are those that decoders read.
tokens_per_pass = output tokens / passes over a canvas of a request (block diffusion).
chunk_gap = gaps between the outputs of a request, pooled, where drafts were checked or canvases denoised, so that tokens come
several at once.
mean_acceptance_length = tokens per row and step whose drafts were checked: 1 + accepted drafts / such rows. acceptance_rate_posI =
accepted drafts at position I (from 0 on) / drafts there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.metrics import DraftCounts
from .records import RequestRecord, RunRecord, StepStatistics

PERCENTILES = (50, 90, 99)


@dataclass
class SLOConfig:
    """Service-level objectives in seconds; None = no objective."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


def ttft_s(request: RequestRecord) -> float:
    """Time to first token; NaN without one."""
    return request.token_times_s[0] - request.arrival_s if len(request.token_times_s) else math.nan


def tpot_s(request: RequestRecord) -> float:
    """Time per output token after the first; NaN with fewer than two."""
    times = request.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.nan


def e2e_s(request: RequestRecord) -> float:
    """Time from arrival to the last token; NaN without one."""
    return request.token_times_s[-1] - request.arrival_s if len(request.token_times_s) else math.nan


def meets(request: RequestRecord, slo: SLOConfig) -> bool:
    """Whether a request was completed within every objective."""
    if not len(request.token_times_s):
        return False
    tpot = tpot_s(request)
    measured = ((ttft_s(request), slo.ttft_s), (0.0 if math.isnan(tpot) else tpot, slo.tpot_s), (e2e_s(request), slo.e2e_s))
    return all(limit is None or value <= limit for value, limit in measured)


def compute_metrics(run: RunRecord, slo: SLOConfig, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Name -> value; every name ends in its unit where it has one. What was not observed is absent, never zero. ``percentiles``: of
    latencies, from 0 to 100."""
    served = [request for request in run.requests if request.status == "ok" and len(request.token_times_s)]
    statuses = Counter(request.status for request in run.requests)
    metrics: dict[str, float] = {
        "num_completed": len(served),
        "num_refused": statuses["refused"],
        "num_failed": statuses["failed"],
        "num_prompt_tokens": sum(request.num_prompt_tokens for request in served),
        "num_output_tokens": sum(len(request.token_times_s) for request in served),
    }
    if num_encoded := sum(request.num_encoder_tokens for request in served):
        metrics["num_encoder_tokens"] = num_encoded
    if run.steps:
        metrics["num_steps"] = sum(steps.num_steps for steps in run.steps)
        metrics["num_preemptions"] = run.num_preemptions
        metrics["num_chunked_prefills"] = run.num_chunked_prefills
    if run.num_denoising_passes:
        metrics["num_denoising_passes"] = run.num_denoising_passes
        metrics["tokens_per_pass"] = metrics["num_output_tokens"] / run.num_denoising_passes
    if run.prefix_query_tokens:
        metrics["prefix_hit_rate"] = run.prefix_hit_tokens / run.prefix_query_tokens
    if num_images := sum(request.num_images for request in served):
        metrics["num_images"] = num_images
    if num_image_tokens := sum(request.num_image_tokens for request in served):  # which no server tells
        metrics["num_image_tokens"] = num_image_tokens
    if run.num_image_queries:
        metrics["num_images_encoded"] = run.num_images_encoded
        metrics["encoder_hit_rate"] = run.num_image_hits / run.num_image_queries
    if any(run.drafts.drafts):
        metrics |= acceptance(run.drafts)
    if known := [request for request in run.requests if request.num_known_tokens is not None]:
        num_known = sum(request.num_known_tokens or 0 for request in known)
        metrics["prefix_hit_rate_bound"] = num_known / sum(request.num_prompt_tokens for request in known)
    if not served:
        return metrics
    latencies = {
        "ttft": np.array([ttft_s(request) for request in served]),
        "tpot": np.array([tpot_s(request) for request in served if len(request.token_times_s) > 1]),
        "itl": gaps([request.token_times_s for request in served]),
        "e2e": np.array([e2e_s(request) for request in served]),
    }
    if any(run.drafts.drafts) or run.num_denoising_passes:
        latencies["chunk_gap"] = latencies["itl"][latencies["itl"] > 0]
    for name, values in latencies.items():
        metrics.update(distribution(name, values, percentiles))
    priorities = sorted({request.priority for request in served})
    for priority in priorities if len(priorities) > 1 else ():
        of_priority = np.array([ttft_s(request) for request in served if request.priority == priority])
        metrics.update(distribution(f"ttft_priority_{priority}", of_priority, percentiles))
    duration_s = max(r.token_times_s[-1] for r in served) - min(r.arrival_s for r in run.requests)
    metrics["duration_s"] = duration_s
    if duration_s > 0:
        num_good = sum(meets(request, slo) for request in served)
        metrics["requests_per_s"] = len(served) / duration_s
        if num_images:
            metrics["images_per_s"] = num_images / duration_s
        metrics["goodput_per_s"] = num_good / duration_s
        metrics["output_tokens_per_s"] = metrics["num_output_tokens"] / duration_s
        metrics["total_tokens_per_s"] = (metrics["num_output_tokens"] + metrics["num_prompt_tokens"]) / duration_s
        if num_encoded:
            metrics["encoder_tokens_per_s"] = num_encoded / duration_s
    if metrics.get("tpot_mean_s"):
        metrics["tokens_per_s_per_user"] = 1.0 / metrics["tpot_mean_s"]
    metrics.update(_state(run.steps))
    if run.num_engines > 1:
        of_each = Counter(request.replica for request in run.requests)
        counts = [of_each[replica] for replica in range(run.num_engines)]
        metrics |= {"replica_requests_min": min(counts), "replica_requests_max": max(counts)}
    return metrics


def acceptance(drafts: DraftCounts) -> dict[str, float]:
    """Metrics of at least one draft. The rate of a position is of the drafts that were there, which are not as many as rows: those
    may have fewer."""
    rates = {f"acceptance_rate_pos{i}": a / n for i, (n, a) in enumerate(zip(drafts.drafts, drafts.accepted)) if n}
    length = 1 + sum(drafts.accepted) / drafts.drafts[0]
    return {"num_draft_tokens": sum(drafts.drafts), "mean_acceptance_length": length, **rates}


def gaps(times_s: Sequence[Sequence[float]]) -> np.ndarray:
    """float64, all gaps within each of the series, none of which is empty. In one array from the start: there may be a hundred
    million."""
    found, first = np.empty(sum(len(times) - 1 for times in times_s)), 0
    for series in times_s:
        times = np.asarray(series)
        np.subtract(times[1:], times[:-1], out=found[first : first + len(times) - 1])
        first += len(times) - 1
    return found


def distribution(name: str, values: np.ndarray, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Mean and percentiles as metrics, none of no values; reorders ``values``."""
    if not len(values):
        return {}
    mean = float(np.mean(values))
    found = np.percentile(values, percentiles, overwrite_input=True)
    return {f"{name}_mean_s": mean, **{f"{name}_p{p:g}_s": float(value) for p, value in zip(percentiles, found)}}


def _state(engines: Sequence[StepStatistics]) -> dict[str, float]:
    """Use of the KV cache, and requests that ran and waited. Each engine weighs as long as it was seen; one that took a single step
    is told by the state that this left."""
    used = [steps for steps in engines if steps.num_steps]
    metrics: dict[str, float] = {}
    for i, name in enumerate(("kv_usage", "num_running", "num_waiting") if used else ()):
        seen_s = sum(steps.last_s - steps.first_s for steps in used)
        areas, now = sum(steps.areas[i] for steps in used), sum(steps.last[i] for steps in used)
        metrics[f"{name}_mean"] = areas / seen_s if seen_s > 0 else now / len(used)
        metrics[f"{name}_max"] = max(steps.maxima[i] for steps in used)
    return metrics
