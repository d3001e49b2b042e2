"""What a client over HTTP adds to the metrics of a run.

chunk_gap       gaps between the chunks of a request, pooled: ITL of those who do not look into chunks
lateness        sent - arrived: how far the client itself was behind; TTFT counts it in
client_queue    how long max_concurrency held requests back, before they arrived; TTFT does not count it in
client_cpu_s    CPU time of the client while it asked, and per output token
concurrency_max, output_tokens_per_s_max    most requests under way at once; most tokens in a second that begins n s after the start
num_usage_tokens    output tokens as the server counts them, where it does so for all
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..metrics import PERCENTILES, distribution, gaps
from .driver import HttpRecord, Loaded


def client_metrics(loaded: Loaded, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Name -> value, as ``compute_metrics``; of the requests that were served, the client's own numbers of all."""
    records = loaded.records
    served = [record for record in records if record.status == "ok" and len(record.token_times_s)]
    metrics = distribution("chunk_gap", gaps([record.chunk_times_s for record in served]), percentiles)
    lateness = np.array([record.sent_s - record.arrival_s for record in records])
    metrics |= {"lateness_max_s": float(lateness.max()), **distribution("lateness", lateness, percentiles)}
    if any(record.queued_s for record in records):
        metrics |= distribution("client_queue", np.array([record.queued_s for record in records]), percentiles)
    num_tokens = sum(len(record.token_times_s) for record in records)
    metrics |= {"client_cpu_s": loaded.cpu_s, "concurrency_max": _concurrency(records)}
    if num_tokens:
        times = np.concatenate([np.asarray(record.token_times_s) for record in records])
        metrics["client_cpu_per_token_s"] = loaded.cpu_s / num_tokens
        metrics["output_tokens_per_s_max"] = int(np.bincount(times.astype(int)).max())
    if served and all(record.num_usage_tokens is not None for record in served):
        metrics["num_usage_tokens"] = sum(record.num_usage_tokens or 0 for record in served)
    if num_chunks := sum(len(record.chunk_times_s) for record in served):
        metrics["tokens_per_chunk"] = sum(len(record.token_times_s) for record in served) / num_chunks
    return metrics


def _concurrency(records: Sequence[HttpRecord]) -> int:
    """Most requests that were under way at once; one that ends when another is sent is no longer."""
    changes = sorted([(r.sent_s, 1) for r in records] + [(r.ended_s, -1) for r in records])
    return int(np.cumsum([change for _, change in changes]).max())
