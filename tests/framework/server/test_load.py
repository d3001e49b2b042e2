"""The load client against the server: no token lost, and both count the same."""

from __future__ import annotations

import pytest

from framework.llm import LLM
from framework.study.compose import LoadConfig
from framework.study.load.config import HttpConfig
from framework.study.load.driver import HttpRecord
from framework.study.load.run import load
from framework.study.served import Served
from framework.study.workload import WorkloadConfig, build_workload

from .servers import HTTPServer

WORKLOAD = WorkloadConfig(num_requests=48, prompt_tokens=24, output_tokens=12, rate=200, seed=7)


@pytest.fixture(scope="module")
def served(server: HTTPServer, offline: LLM) -> Served:
    config = LoadConfig(workload=WORKLOAD, http=HttpConfig(server.url, timeout_s=60))
    return load(config, 2048, None, progress=False)


def test_tokens_are_those_of_the_offline_interface(served: Served, offline: LLM) -> None:
    workload = build_workload(WORKLOAD, 2048, None)
    outputs = offline.generate([r.prompt_token_ids for r in workload], [r.sampling for r in workload], use_tqdm=False)
    for record in served.record.requests:
        assert isinstance(record, HttpRecord) and record.status == "ok", record.error
        assert list(record.token_ids) == list(outputs[int(record.request_id)].outputs[0].token_ids)
        assert record.finish_reason == "length" and len(record.token_times_s) == record.num_usage_tokens


def test_the_servers_counters_are_the_clients_totals(served: Served) -> None:
    metrics = served.metrics(LoadConfig())
    assert metrics["server_prompt_tokens"] == metrics["num_prompt_tokens"]
    assert metrics["server_output_tokens"] == metrics["num_output_tokens"] == metrics["num_usage_tokens"]
    assert metrics["num_preemptions"] == 0 and 0 <= metrics["prefix_hit_rate"] < 1


def test_a_run_finds_nothing_in_the_prefix_cache_of_the_run_before(served: Served, server: HTTPServer) -> None:
    config = LoadConfig(workload=WORKLOAD, http=HttpConfig(server.url, timeout_s=60))
    again = load(config, 2048, None, progress=False).metrics(config)
    assert again["prefix_hit_rate"] == served.metrics(config)["prefix_hit_rate"] == 0


def test_the_row_has_the_servers_kernels(served: Served) -> None:
    assert {"linear", "sample", "paged_attention_decode"} <= served.plan.keys()
    assert served.system["version"] != "unknown" and served.system["counted_by"] == "token_ids"


RUNNING = {"stream_options": {"continuous_usage_stats": True, "include_usage": True}}


@pytest.mark.parametrize(
    ("http", "counted_by"),
    [
        (HttpConfig(extensions=False), {"usage", "text"}),
        (HttpConfig(extensions=False, extra_body={"logprobs": 0}), {"logprobs"}),
        (HttpConfig(extensions=False, extra_body=RUNNING), {"usage"}),
        (HttpConfig(endpoint="/v1/chat/completions"), {"token_ids"}),
    ],
    ids=["final usage", "logprobs", "running usage", "chat"],
)
def test_every_way_to_count_comes_to_the_same(server: HTTPServer, offline: LLM, http: HttpConfig, counted_by: set[str]) -> None:
    http.url = server.url
    few = WorkloadConfig(source="python", num_requests=3, prompt_tokens=16, output_tokens=8, output_spread=0)
    found = load(LoadConfig(workload=few, http=http), 2048, offline.get_tokenizer(), progress=False)
    metrics = found.metrics(LoadConfig())
    assert metrics["num_output_tokens"] == metrics["num_usage_tokens"] == metrics["server_output_tokens"]
    assert set(found.system["counted_by"].split(",")) <= counted_by
