"""The result of a run in the form that users of ``vllm bench serve`` know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..compose import LoadConfig
from ..records import RequestRecord

LATENCIES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "chunk_gap": ("chunk gap", "Inter-chunk Latency"),
    "e2e": ("E2EL", "End-to-end Latency"),
    "client_queue": ("queue", "Client Queue Time (max_concurrency)"),
}
"""Metric -> its short name and its heading."""
_WIDTH = 50


def format_load(config: LoadConfig, metrics: Mapping[str, float], latencies: Iterable[str], percentiles: Sequence[float]) -> str:
    """One line per number, latencies in milliseconds. Those of the client stand below: what it measured is worth less where it was
    late, or short of CPU time."""
    rate, limit = config.workload.rate, config.http.max_concurrency
    lines = [
        " Serving Benchmark Result ".center(_WIDTH, "="),
        _line("Successful requests", metrics["num_completed"]),
        _line("Failed requests", metrics["num_failed"] + metrics["num_refused"]),
        *([_line("Maximum request concurrency", limit)] if limit else []),
        *([_line("Request rate configured (RPS)", rate)] if config.workload.arrivals == "open" and math.isfinite(rate) else []),
        _line("Benchmark duration (s)", metrics.get("duration_s")),
        _line("Total input tokens", metrics["num_prompt_tokens"]),
        _line("Total generated tokens", metrics["num_output_tokens"]),
        _line("Request throughput (req/s)", metrics.get("requests_per_s")),
        *([_line("Request goodput (req/s)", metrics.get("goodput_per_s"))] if any(vars(config.slo).values()) else []),
        _line("Output token throughput (tok/s)", metrics.get("output_tokens_per_s")),
        _line("Peak output token throughput (tok/s)", metrics.get("output_tokens_per_s_max")),
        _line("Peak concurrent requests", metrics.get("concurrency_max")),
        _line("Total token throughput (tok/s)", metrics.get("total_tokens_per_s")),
    ]
    for name in latencies:
        if f"{name}_mean_s" in metrics:
            short, heading = LATENCIES[name]
            lines.append(heading.center(_WIDTH, "-"))
            words = {"Mean": "mean", "Median": "p50"} | {f"P{p:g}": f"p{p:g}" for p in percentiles if p != 50}
            lines += [_line(f"{word} {short} (ms)", 1e3 * metrics[f"{name}_{part}_s"]) for word, part in words.items()]
    lines += [
        "Client".center(_WIDTH, "-"),
        _line("CPU time (s)", metrics["client_cpu_s"]),
        _line("CPU time per token (us)", 1e6 * metrics.get("client_cpu_per_token_s", math.nan)),
        _line("Requests sent late by, mean (ms)", 1e3 * metrics["lateness_mean_s"]),
        _line("Requests sent late by, at most (ms)", 1e3 * metrics["lateness_max_s"]),
        "=" * _WIDTH,
    ]
    return "\n".join(lines)


def format_failures(requests: Iterable[RequestRecord], most: int = 5) -> str:
    """The commonest reasons, one line each; empty if nothing failed."""
    reasons = Counter(request.error for request in requests if request.error is not None)
    return "\n".join(f"{count} failed: {reason}" for reason, count in reasons.most_common(most))


def _line(name: str, value: float | None) -> str:
    shown = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name + ':':<40} {shown:<9}".rstrip()
