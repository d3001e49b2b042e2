"""How a person reads the columns of a table of runs: names and units of metrics and swept keys."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class Quantity(NamedTuple):
    """label: name and unit; scale: the factor from the table's values to the unit."""

    label: str
    scale: float = 1.0


PER_DEVICE = "/gpu"
"""A metric with this suffix is divided by the devices that served: tp x pp x replicas."""

USUAL_METRICS = (
    *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "itl_p99_s", "output_tokens_per_s", "goodput_per_s"),
    *("bits_per_byte", "kl_mean", "kl_p99", "top1_agreement", "weight_bytes"),
)
"""Of a table or a report, where none are named: those that were observed."""

_METRICS = {
    "goodput_per_s": Quantity("Goodput (requests/s)"),
    "requests_per_s": Quantity("Requests/s"),
    "output_tokens_per_s": Quantity("Output tokens/s"),
    "total_tokens_per_s": Quantity("Total tokens/s"),
    "tokens_per_s_per_user": Quantity("Tokens/s per user"),
    "kv_usage_mean": Quantity("KV cache used, mean (%)", 100),
    "kv_usage_max": Quantity("KV cache used, at most (%)", 100),
    "kl_mean": Quantity("KL divergence (nats per token)"),
    "kl_p99": Quantity("KL divergence p99 (nats)"),
    "top1_agreement": Quantity("Agreement on the first token (%)", 100),
    "weight_bytes": Quantity("Weights (MB)", 1e-6),
}
_ENDINGS = (
    *((" per s", "/s", 1.0), (" rate", " rate (%)", 100.0), (" share", " share (%)", 100.0)),
    *((" s", " (s)", 1.0), (" bytes", " (MB)", 1e-6)),
)
_COLUMNS = {
    "workload.rate": "Offered load (requests/s)",
    "workload.num_users": "Users",
    "scheduler.max_num_batched_tokens": "Token budget of a step",
    "cache.num_blocks": "Blocks of the KV cache",
    "cache.block_size": "Tokens per block",
    "parallel.tp": "Tensor parallel ranks",
    "parallel.pp": "Pipeline stages",
    "parallel.dp": "Replicas",
}


def quantity(metric: str) -> Quantity:
    """What a metric (``metric.`` before it or not) is called, and the unit to show it in: "ttft_p50_s" -> TTFT p50 (ms), 1000."""
    name = metric.removeprefix("metric.")
    if name.endswith(PER_DEVICE):
        label, scale = quantity(name.removesuffix(PER_DEVICE))
        return Quantity(f"{label} per GPU", scale)
    if known := _METRICS.get(name):
        return known
    if latency := re.fullmatch("(ttft|tpot|itl|e2e)_(.+)_s", name):
        return Quantity(f"{latency[1].upper()} {latency[2].replace('_', ' ')} (ms)", 1e3)
    words = _words(name)
    for ending, unit, scale in _ENDINGS:
        if words.endswith(ending):
            return Quantity(words.removesuffix(ending) + unit, scale)
    return Quantity(words)


def column_quantity(column: str) -> Quantity:
    """What a swept column is called on an axis, and in which unit."""
    words = _words(column.split(".")[-1])
    if words.endswith(" bytes"):
        return Quantity(f"{words.removesuffix(' bytes')} (GB)", 1e-9)
    return Quantity(_COLUMNS.get(column, words))


def number_text(value: float, num_digits: int = 4) -> str:
    """With so many digits that count; a dash for what was not observed."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{value:,.0f}" if 10**num_digits <= abs(value) < 1e12 else f"{value:.{num_digits}g}"


def _words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
