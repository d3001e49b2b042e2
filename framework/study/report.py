"""The tables that a run prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import format_table
from .time_shares import PARTS


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
        f"tokens      {number('num_prompt_tokens', 0)} prompt, {number('num_output_tokens', 0)} output"
        + (f", {number('num_encoder_tokens', 0)} of encoders" if "num_encoder_tokens" in metrics else ""),
        f"throughput  {number('requests_per_s', 2)} requests/s, {number('output_tokens_per_s')} output tokens/s, "
        f"{number('total_tokens_per_s')} total tokens/s",
        f"goodput     {number('goodput_per_s', 2)} requests/s within the SLOs",
        f"KV cache    {number('kv_usage_mean', 1, 100)} % used on average, {number('kv_usage_max', 1, 100)} % at most, "
        f"{number('prefix_hit_rate', 1, 100)} % prefix hits, {number('num_preemptions', 0)} preemptions",
    ]
    if "num_images" in metrics:
        lines.append(
            f"images      {number('num_images', 0)} in prompts, {number('images_per_s', 2)} images/s, "
            f"{number('num_images_encoded', 0)} encoded, {number('encoder_hit_rate', 1, 100)} % encoder hits"
        )
    if "mean_acceptance_length" in metrics:
        shares = ", ".join(f"{part} {number(f'{part}_share', 1, 100)} %" for part in PARTS)
        lines.append(f"drafts      {number('mean_acceptance_length', 2)} tokens per request and step; of the time: {shares}")
    return "\n".join([format_table(rows), "", *lines])


def format_plan(report: Mapping[str, Mapping[str, Any]]) -> str:
    """op, impl, what chose it and number of calls, from an executor's ``plan_report()``."""
    rows = [
        [op, str(entry["impl"]), entry["chosen"], f"{entry['calls']}{' and replays' if entry.get('recorded') else ''}"]
        for op, entry in report.items()
    ]
    return format_table([["kernel", "impl", "chosen by", "calls"], *rows])


def format_quality(metrics: Mapping[str, float]) -> str:
    """The metrics of a quality run with their standard errors."""

    def value(name: str, form: str, scale: float = 1.0) -> str:
        error = f" +- {metrics[f'{name}_se'] * scale:{form.lstrip('+')}}" if f"{name}_se" in metrics else ""
        return f"{metrics[name] * scale:{form}}{error}"

    return "\n".join(
        [
            f"text           {metrics['num_tokens']} tokens, {metrics['num_bytes']} bytes in {metrics['num_windows']} windows",
            f"bits per byte  {value('bits_per_byte', '.4f')}, {value('bits_per_byte_increase', '+.4f')} over the baseline",
            f"perplexity     {value('perplexity', '.4f')} per token, {value('baseline_perplexity', '.4f')} of the baseline",
            f"KL divergence  {value('kl_mean', '.3g')} nats per token, {value('kl_p99', '.3g')} at the 99th percentile",
            f"agreement      {value('top1_agreement', '.2f', 100)} % on the most likely token",
            f"weights        {metrics['weight_bytes'] / 1e6:.2f} MB",
        ]
    )
