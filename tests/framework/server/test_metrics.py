"""/metrics, read by prometheus_client's own parser, against what clients were told."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from framework import AsyncEngine
from framework.metrics import TEXTS, Counter, Gauge, Histogram
from framework.server.config import ServerConfig
from framework.server.metrics import render

from .servers import HTTPServer, serving


def scrape(server: HTTPServer) -> dict[str, float]:
    """Sample name, with the labels beyond model_name and engine -> value."""
    status, text = server.request("GET", "/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in ("model_name", "engine")}
            found[sample.name + "".join(f"{{{key}={value}}}" for key, value in labels.items())] = sample.value
    return found


def test_what_is_rendered_is_read_again_as_it_was() -> None:
    labels = {"model_name": 'a "model"\\', "engine": "0"}
    rendered = render(
        [
            Counter("vllm:prompt_tokens", labels, 12),
            Counter("vllm:request_success", {**labels, "finished_reason": "stop"}, 3),
            Counter("vllm:request_success", {**labels, "finished_reason": "length"}, 4),
            Gauge("vllm:kv_cache_usage_perc", labels, 0.25),
            Histogram("vllm:iteration_tokens_total", labels, 5, 17.5, {"1.0": 2, "8.0": 4, "+Inf": 5}),
        ]
    ).decode()
    families = {family.name: family for family in text_string_to_metric_families(rendered) if family.name.startswith("vllm:")}
    assert {name: (family.type, family.documentation) for name, family in families.items()} == {
        "vllm:prompt_tokens": ("counter", TEXTS["vllm:prompt_tokens"]),
        "vllm:request_success": ("counter", TEXTS["vllm:request_success"]),
        "vllm:kv_cache_usage_perc": ("gauge", TEXTS["vllm:kv_cache_usage_perc"]),
        "vllm:iteration_tokens_total": ("histogram", TEXTS["vllm:iteration_tokens_total"]),
    }
    samples: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in families.values():
        for sample in family.samples:
            samples[sample.name].append((sample.labels, sample.value))
    assert samples["vllm:prompt_tokens_total"] == [(labels, 12)]
    assert [value for _, value in samples["vllm:request_success_total"]] == [3, 4]
    ends = [(found["le"], value) for found, value in samples["vllm:iteration_tokens_total_bucket"]]
    assert ends == [("1.0", 2), ("8.0", 4), ("+Inf", 5)]
    assert samples["vllm:iteration_tokens_total_sum"] == [(labels, 17.5)]
    assert samples["vllm:iteration_tokens_total_count"] == [(labels, 5)]
    assert "process_resident_memory_bytes" in rendered


def test_counters_grow_by_what_clients_were_told(server: HTTPServer) -> None:
    before = scrape(server)
    told: dict[str, Any] = defaultdict(int)
    for prompt, max_tokens in (("import os\n", 5), ("class A:", 9), ("x", 1)):
        _, answer = server.post("/v1/completions", prompt=prompt, max_tokens=max_tokens, seed=3)
        for key in ("prompt_tokens", "completion_tokens"):
            told[key] += answer["usage"][key]
        told[answer["choices"][0]["finish_reason"]] += 1
    after = scrape(server)
    grown = {name: value - before[name] for name, value in after.items() if name in before}
    assert grown["vllm:prompt_tokens_total"] == grown["vllm:request_prompt_tokens_sum"] == told["prompt_tokens"]
    assert grown["vllm:generation_tokens_total"] == grown["vllm:request_generation_tokens_sum"] == told["completion_tokens"]
    for reason in ("length", "stop"):
        assert grown[f"vllm:request_success_total{{finished_reason={reason}}}"] == told[reason]
    assert grown["vllm:inter_token_latency_seconds_count"] == told["completion_tokens"] - 3
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert grown[f"vllm:{name}_seconds_count"] == 3
        assert grown[f"vllm:{name}_seconds_bucket{{le=+Inf}}"] == 3
    parts = ("queue", "prefill", "decode")
    whole = grown["vllm:e2e_request_latency_seconds_sum"]
    assert 0 < sum(grown[f"vllm:request_{part}_time_seconds_sum"] for part in parts) <= whole + 1e-9
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == after["vllm:kv_cache_usage_perc"] == 0


def test_the_served_name_is_the_label(engine: AsyncEngine) -> None:
    with serving(engine, ServerConfig(served_model_name=["mine", "other"], api_key=["k"])) as server:
        status, text = server.request("GET", "/metrics")  # open without the key
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for family in families.values():
        for sample in family.samples:
            assert sample.labels.get("model_name", "mine") == "mine"
    kernels = {sample.labels["op"]: sample.labels["impl"] for sample in families["kernelswap:kernel_info"].samples}
    assert set(kernels) > {"linear", "sample", "paged_attention_decode"} and all(kernels.values())
