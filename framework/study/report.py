"""The tables that a run prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import format_table


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Latencies by percentile, then one line per kind of number; what was not observed is shown as a dash."""
    rows = [["", "mean", "p50", "p90", "p99"]]
    for name in ("ttft", "tpot", "itl", "e2e"):
        values = [metrics.get(f"{name}_{part}_s") for part in ("mean", "p50", "p90", "p99")]
        rows.append([f"{name.upper()} (ms)", *("-" if v is None else f"{v * 1e3:.2f}" for v in values)])

    def number(name: str, digits: int = 1, scale: float = 1.0) -> str:
        return f"{metrics[name] * scale:.{digits}f}" if name in metrics else "-"

    lines = [
        f"requests    {number('num_completed', 0)} completed, {number('num_refused', 0)} refused, "
        f"{number('num_failed', 0)} failed, in {number('duration_s', 2)} s",
        f"tokens      {number('num_prompt_tokens', 0)} prompt, {number('num_output_tokens', 0)} output",
        f"throughput  {number('requests_per_s', 2)} requests/s, {number('output_tokens_per_s')} output tokens/s, "
        f"{number('total_tokens_per_s')} total tokens/s",
        f"goodput     {number('goodput_per_s', 2)} requests/s within the SLOs",
        f"KV cache    {number('kv_usage_mean', 1, 100)} % used on average, {number('kv_usage_max', 1, 100)} % at most, "
        f"{number('prefix_hit_rate', 1, 100)} % prefix hits, {number('num_preemptions', 0)} preemptions",
    ]
    return "\n".join([format_table(rows), "", *lines])


def format_plan(report: Mapping[str, Mapping[str, Any]]) -> str:
    """op, impl, what chose it and number of calls, from an executor's ``plan_report()``."""
    rows = [
        [op, str(entry["impl"]), entry["chosen"], f"{entry['calls']}{' and replays' if entry.get('recorded') else ''}"]
        for op, entry in report.items()
    ]
    return format_table([["kernel", "impl", "chosen by", "calls"], *rows])
