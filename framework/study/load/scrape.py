"""What a server counts by itself, from its Prometheus metrics: of vLLM's names, which we have too."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from ...engine.metrics import DraftCounts

COUNTERS = {
    "server_prompt_tokens": "vllm:prompt_tokens_total",
    "server_output_tokens": "vllm:generation_tokens_total",
    "num_preemptions": "vllm:num_preemptions_total",
    "prefix_query_tokens": "vllm:prefix_cache_queries_total",
    "prefix_hit_tokens": "vllm:prefix_cache_hits_total",
    "num_image_queries": "vllm:mm_cache_queries_total",
    "num_image_hits": "vllm:mm_cache_hits_total",
    "num_images_encoded": "kernelswap:images_encoded_total",
    "num_draft_tokens": "vllm:spec_decode_num_draft_tokens_total",
}
DRAFTED = "vllm:spec_decode_num_drafts_total"
ACCEPTED_BY_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
CHECKED_BY_POSITION = "kernelswap:spec_decode_num_draft_tokens_per_pos_total"
KERNELS = "kernelswap:kernel_info"
STRUCTURED = "kernelswap:structured_requests_total"
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")


def counters(text: str) -> dict[str, float]:
    """Those of COUNTERS that a scrape has, summed over labels (several engines)."""
    sums: dict[str, float] = defaultdict(float)
    for name, _, value in _samples(text):
        sums[name] += float(value)
    return {name: sums[theirs] for name, theirs in COUNTERS.items() if theirs in sums}


def drafts(text: str) -> DraftCounts:
    """Of a server that speculates, summed over labels. vLLM does not say how many rows had a draft at a position: they are taken
    to have had one at each, as its own rates are."""
    accepted, checked = _by_position(text, ACCEPTED_BY_POSITION), _by_position(text, CHECKED_BY_POSITION)
    rows = round(sum(float(value) for name, _, value in _samples(text) if name == DRAFTED))
    return DraftCounts(checked or (rows,) * len(accepted), accepted) if rows else DraftCounts()


def kernels(text: str) -> dict[str, str]:
    """op -> impl, of a server that says it."""
    return {found["op"]: found["impl"] for found in _labels(text, KERNELS) if "op" in found and "impl" in found}


def structured_backends(text: str) -> list[str]:
    """Libraries that compiled grammars, of a server that says it."""
    return sorted({found["backend"] for found in _labels(text, STRUCTURED) if "backend" in found})


def added(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int]:
    """By how much each counter grew; of those that both scrapes have."""
    return {name: round(after[name] - before[name]) for name in after if name in before}


def _by_position(text: str, name: str) -> tuple[int, ...]:
    sums: Counter[int] = Counter()
    for each, labels, value in _samples(text):
        if each == name and (found := re.search(r'position="(\d+)"', labels)):
            sums[int(found[1])] += round(float(value))
    return tuple(sums[position] for position in range(max(sums, default=-1) + 1))


def _labels(text: str, name: str) -> list[dict[str, str]]:
    """Of every sample of that name."""
    return [dict(re.findall(r'(\w+)="([^"]*)"', found)) for each, found, _ in _samples(text) if each == name]


def _samples(text: str) -> list[tuple[str, str, str]]:
    """(name, labels, value) of every sample."""
    return [match.groups(default="") for line in text.splitlines() if (match := _SAMPLE.fullmatch(line.strip()))]  # type: ignore[misc]
