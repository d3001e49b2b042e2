"""What an engine counts, under vLLM's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine.metrics import DraftCounts, EngineMetrics

TEXTS = MappingProxyType(
    {
        "vllm:num_requests_running": "Completions that hold a place in the batch.",
        "vllm:num_requests_waiting": "Completions that wait for a place.",
        "vllm:num_requests_waiting_by_reason": "Completions that wait: for room (capacity), or for something else (deferred).",
        "vllm:kv_cache_usage_perc": "Fraction of the KV blocks that requests hold: 1 is all.",
        "vllm:cache_config_info": "How the KV cache is configured.",
        "vllm:num_preemptions": "Completions that lost their place to others, and computed their tokens again.",
        "vllm:prefix_cache_queries": "Prompt tokens that were looked up in the prefix cache.",
        "vllm:prefix_cache_hits": "Prompt tokens that the prefix cache had.",
        "vllm:mm_cache_queries": "Images that requests came to.",
        "vllm:mm_cache_hits": "Images that requests came to and that were encoded already.",
        "kernelswap:images_encoded": "Images that were encoded.",
        "vllm:prompt_tokens": "Prompt tokens of the requests that began.",
        "vllm:prompt_tokens_cached": "Prompt tokens that were not computed, because the cache held them.",
        "vllm:prompt_tokens_by_source": "Prompt tokens by where their keys and values came from.",
        "vllm:generation_tokens": "Tokens generated.",
        "vllm:request_success": "Completions that ended, by why.",
        "vllm:admission_rejections": "Requests that were refused because too many wait already.",
        "vllm:corrupted_requests": "Completions that ended because their logits were NaN or all -inf.",
        "vllm:spec_decode_num_drafts": "Rows of steps whose drafts were checked.",
        "vllm:spec_decode_num_draft_tokens": "Drafts that were checked.",
        "vllm:spec_decode_num_accepted_tokens": "Drafts that were accepted.",
        "vllm:spec_decode_num_accepted_tokens_per_pos": "Drafts that were accepted, by their position in the row.",
        "kernelswap:spec_decode_num_draft_tokens_per_pos": "Drafts that were checked, by their position in the row.",
        "vllm:time_to_first_token_seconds": "From a request's arrival to its first token.",
        "vllm:inter_token_latency_seconds": "Between a completion's token and its next one.",
        "vllm:request_time_per_output_token_seconds": "Mean time between the tokens of a completion that has several.",
        "vllm:e2e_request_latency_seconds": "From a request's arrival to its end.",
        "vllm:request_queue_time_seconds": "From a request's arrival to the first step that it takes part in.",
        "vllm:request_inference_time_seconds": "From the first step that a request takes part in to its last token.",
        "vllm:request_prefill_time_seconds": "From the first step that a request takes part in to its first token.",
        "vllm:request_decode_time_seconds": "From a request's first token to its last.",
        "vllm:iteration_tokens_total": "Prompt tokens computed and tokens generated per step.",
        "vllm:request_prompt_tokens": "Prompt tokens per completion.",
        "vllm:request_generation_tokens": "Tokens generated per completion.",
        "vllm:request_max_num_generation_tokens": "Tokens of the longest completion of a request.",
        "vllm:request_params_n": "Completions that a request asks for.",
        "vllm:request_params_max_tokens": "Most tokens that a completion may have.",
        "vllm:request_num_preemptions": "How often a completion was preempted.",
        "vllm:request_prefill_kv_computed_tokens": "Prompt tokens per completion that the cache did not have.",
        "vllm:lora_requests_info": "Adapters that completions wait for, and that run; max_lora: most in one step.",
        "kernelswap:kernel_info": "Which implementation serves an op.",
        "kernelswap:structured_requests": "Completions held to a grammar, by the library that compiled it.",
    }
)
"""What the names mean."""


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


@dataclass(frozen=True)
class Histogram(Metric):
    """Values since the start. buckets: upper end, "+Inf" the last -> how many were at most that."""

    count: int
    sum: float
    buckets: dict[str, int]


def engine_metrics(found: Mapping[int, EngineMetrics], model_name: str) -> list[Metric]:
    """All metrics of engines, told apart by the label ``engine``. found: by the number of the engine. Prefix cache queries and hits
    are in tokens; ``kv_cache_usage_perc`` is a fraction. Of a request with several completions each counts as one, with the prompt,
    but for ``request_params_n`` and ``request_max_num_generation_tokens``."""
    labels = {"model_name": model_name}
    return [metric for index, each in found.items() for metric in _metrics(each, {**labels, "engine": f"{index}"})]


def _metrics(found: EngineMetrics, labels: dict[str, str]) -> Iterator[Metric]:
    stats = found.stats
    yield Gauge("vllm:num_requests_running", labels, stats.num_running)
    yield Gauge("vllm:num_requests_waiting", labels, stats.num_waiting)
    waiting = {"capacity": stats.num_waiting - stats.num_not_ready, "deferred": stats.num_not_ready}
    for reason, number in waiting.items():
        yield Gauge("vllm:num_requests_waiting_by_reason", {**labels, "reason": reason}, number)
    yield Gauge("vllm:kv_cache_usage_perc", labels, stats.kv_usage)
    counters = {
        "num_preemptions": stats.num_preemptions,
        "prefix_cache_queries": stats.prefix_query_tokens,
        "prefix_cache_hits": stats.prefix_hit_tokens,
        "mm_cache_queries": stats.num_image_queries,
        "mm_cache_hits": stats.num_image_hits,
        "prompt_tokens": stats.num_prompt_tokens,
        "prompt_tokens_cached": stats.num_cached_prompt_tokens,
        "generation_tokens": stats.num_output_tokens,
        "corrupted_requests": found.corrupted,
    }
    for name, total in counters.items():
        yield Counter(f"vllm:{name}", labels, total)
    yield Counter("kernelswap:images_encoded", labels, stats.num_images_encoded)
    computed = stats.num_prompt_tokens - stats.num_cached_prompt_tokens
    for source, total in {"local_compute": computed, "local_cache_hit": stats.num_cached_prompt_tokens}.items():
        yield Counter("vllm:prompt_tokens_by_source", {**labels, "source": source}, total)
    for finish_reason, total in found.finished.items():
        yield Counter("vllm:request_success", {**labels, "finished_reason": finish_reason}, total)
    yield from _draft_metrics(stats.drafts, labels)
    for name, values in found.histograms.items():
        ends = [*(str(float(bound)) for bound in values.bounds), "+Inf"]
        buckets = dict(zip(ends, accumulate(values.counts.tolist())))
        yield Histogram(f"vllm:{name}", labels, buckets["+Inf"], values.total, buckets)
    yield Gauge("vllm:cache_config_info", {"engine": labels["engine"], **{k: str(v) for k, v in found.cache.items()}}, 1)
    if found.adapters is not None:
        most, of_waiting, of_running = found.adapters
        named = {"waiting_lora_adapters": ",".join(of_waiting), "running_lora_adapters": ",".join(of_running)}
        yield Gauge("vllm:lora_requests_info", {**labels, "max_lora": str(most), **named}, 1)
    for backend, total in found.structured.items():
        yield Counter("kernelswap:structured_requests", {**labels, "backend": backend}, total)
    for op, kernel in found.kernels.items():
        yield Gauge("kernelswap:kernel_info", {**labels, "op": op, "impl": kernel["impl"], "version": kernel["version"]}, 1)


def _draft_metrics(drafts: DraftCounts, labels: dict[str, str]) -> Iterator[Metric]:
    """Nothing while no step has checked any. Rates are accepted by position through checked by position: where their number varies,
    not every row has all positions."""
    if not drafts.drafts:
        return
    yield Counter("vllm:spec_decode_num_drafts", labels, drafts.drafts[0])
    yield Counter("vllm:spec_decode_num_draft_tokens", labels, sum(drafts.drafts))
    yield Counter("vllm:spec_decode_num_accepted_tokens", labels, sum(drafts.accepted))
    for position, (checked, accepted) in enumerate(zip(drafts.drafts, drafts.accepted)):
        of_position = {**labels, "position": f"{position}"}
        yield Counter("vllm:spec_decode_num_accepted_tokens_per_pos", of_position, accepted)
        yield Counter("kernelswap:spec_decode_num_draft_tokens_per_pos", of_position, checked)
