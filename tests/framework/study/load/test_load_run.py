"""A run against a server, and the row that it leaves."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.cli import main
from framework.engine.metrics import DraftCounts
from framework.study.compose import LoadConfig, ServeConfig
from framework.study.load.config import HttpConfig
from framework.study.load.run import load
from framework.study.load.scrape import added, counters, drafts, kernels, structured_backends
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.records import RequestRecord, RunRecord
from framework.study.served import Served, first_columns
from framework.study.workload import WorkloadConfig, build_workload

from .stub_server import END, Asked, Drop, Pages, answering, chunk, error_page, event, serving

SCRAPE = """# HELP vllm:prompt_tokens_total Prompt tokens.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="a b, {{c}} \\"d\\""}} {0}
vllm:prompt_tokens_total{{engine="1",model_name="x"}} 1.5e+01
vllm:generation_tokens_total {0}.0
vllm:prefix_cache_queries_total{{engine="0"}} {0}
vllm:prefix_cache_hits_total{{engine="0"}} 0
kernelswap:kernel_info{{op="linear",impl="packed@threads:2"}} 1.0
kernelswap:kernel_info{{op="sample",impl="torch"}} 1.0
kernelswap:structured_requests_total{{backend="xgrammar"}} 3.0
kernelswap:structured_requests_total{{backend="llguidance"}} 1.0
other_bucket{{le="+Inf"}} +Inf
"""
FEW = WorkloadConfig(num_requests=5, prompt_tokens=8, output_tokens=2, output_spread=0, seed=3)


def config(url: str, **given: Any) -> LoadConfig:
    slo = SLOConfig(ttft_s=10.0)
    return LoadConfig(workload=FEW, slo=slo, http=HttpConfig(url, timeout_s=20), num_warmup_requests=2, **given)


def counting() -> Pages:
    """Of a server whose counters grow by ten with every scrape."""
    scrapes = itertools.count(10, 10)
    return {"/metrics": lambda: SCRAPE.format(next(scrapes)).encode(), "/version": b'{"version": "1.2"}'}


def test_a_scrape_is_summed_over_engines_and_names_kernels() -> None:
    before, after = counters(SCRAPE.format(10)), counters(SCRAPE.format(14))
    assert before == {"server_prompt_tokens": 25, "server_output_tokens": 10, "prefix_query_tokens": 10, "prefix_hit_tokens": 0}
    assert added(before, after) == {n: 4 for n in before if n != "prefix_hit_tokens"} | {"prefix_hit_tokens": 0}
    assert kernels(SCRAPE) == {"linear": "packed@threads:2", "sample": "torch"}
    assert structured_backends(SCRAPE) == ["llguidance", "xgrammar"]
    assert (counters(""), kernels("<html>"), added({}, after), structured_backends("")) == ({}, {}, {}, [])


VLLM = """# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {0}
vllm:spec_decode_num_drafts_created{{engine="0",model_name="m"}} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="m"}} {1}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {2}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} {3}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="1"}} {4}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="2"}} 0.0
"""


def test_acceptance_is_read_from_the_counters_of_a_server_that_speculates() -> None:
    """Rates are vLLM's where it is vLLM, else of the drafts that were there; without drafts there are none."""
    found = drafts(VLLM.format(50.0, 150.0, 58.0, 38.0, 20.0)).since(drafts(VLLM.format(10.0, 30.0, 8.0, 8.0, 0.0)))
    assert found == DraftCounts((40, 40, 40), (30, 20, 0))
    record = RunRecord([RequestRecord("0", 0, 0.0, 1, token_times_s=[1.0], finish_reason="stop")], drafts=found)
    metrics = compute_metrics(record, SLOConfig())
    assert [metrics[f"acceptance_rate_pos{i}"] for i in range(3)] == [30 / 40, 20 / 40, 0.0]
    assert metrics["mean_acceptance_length"] == 1 + 50 / 40
    assert counters(VLLM.format(1, 3, 0, 0, 0)) == {"num_draft_tokens": 3}
    ours = 'kernelswap:spec_decode_num_draft_tokens_per_pos_total{{position="{}"}} {}'
    said = "".join([VLLM.format(50.0, 90.0, 58.0, 38.0, 20.0), *(ours.format(i, n) + "\n" for i, n in enumerate((50, 30, 10)))])
    assert drafts(said) == DraftCounts((50, 30, 10), (38, 20, 0))
    assert drafts(said + said) == DraftCounts((100, 60, 20), (76, 40, 0))
    assert drafts(VLLM.format(0.0, 0.0, 0.0, 0.0, 0.0)) == drafts("") == DraftCounts()


def test_the_server_is_asked_for_what_an_engine_in_process_would_be() -> None:
    with serving(answering(0.0, 0.01), counting()) as stub:
        served = load(config(stub.url), 100, None, progress=False)
    prompts = [asked.body["prompt"] for asked in stub.asked]
    assert len(prompts) == 2 + 5  # those of the warm-up are not counted
    expected = build_workload(FEW, 100, None)
    assert sorted(prompts[2:]) == sorted(request.prompt_token_ids for request in expected)
    assert {asked.body["seed"] for asked in stub.asked[2:]} == {request.sampling.seed for request in expected}
    metrics = served.metrics(config(stub.url))
    assert (metrics["num_completed"], metrics["num_output_tokens"], metrics["num_usage_tokens"]) == (5, 10, 10)
    assert metrics["num_prompt_tokens"] == sum(len(request.prompt_token_ids) for request in expected)
    assert (metrics["server_prompt_tokens"], metrics["server_output_tokens"], metrics["prefix_hit_rate"]) == (10, 10, 0.0)
    assert served.system == {"version": "1.2", "counted_by": "token_ids", "structured_backend": "llguidance,xgrammar"}


def test_the_prompts_of_a_run_are_new_to_the_server_and_counted_by_it() -> None:
    async def with_template(asked: Asked) -> AsyncIterator[bytes]:
        yield chunk([1], "stop")
        yield event(choices=[], usage={"prompt_tokens": len(asked.body["prompt"]) + 3, "completion_tokens": 1})
        yield END

    salts = []
    with serving(with_template) as stub:
        for extensions in (True, True, False):
            asked = config(stub.url)
            served = load(replace(asked, http=replace(asked.http, extensions=extensions)), 100, None, progress=False)
            salts.append({asked.body.get("cache_salt") for asked in stub.asked})
            stub.asked.clear()
    assert [len(each) for each in salts] == [1, 1, 1] and salts[0] != salts[1] and salts[2] == {None}
    assert served.metrics(asked)["num_prompt_tokens"] == sum(len(r.prompt_token_ids) + 3 for r in build_workload(FEW, 100, None))


def test_the_row_has_the_columns_of_a_run_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(folder: Path, served: Served, config: ServeConfig) -> dict[str, Any]:
        served.write(folder, config, first_columns(config))
        return json.loads((folder / "run.json").read_text())

    in_process = ServeConfig(workload=FEW, num_warmup_requests=2, slo=SLOConfig(ttft_s=10.0))
    request = RequestRecord("0", 0, 0.0, 8, token_times_s=[0.1, 0.2], finish_reason="length")
    ours = row(tmp_path / "ours", Served(RunRecord([request]), {}, {}, {}, {}), in_process)
    with serving(answering(0.0, 0.01), counting()) as stub:
        asked = config(stub.url)
        theirs = row(tmp_path / "theirs", load(asked, 100, None, progress=False), asked)
    assert not {c for c in ours if c not in theirs} - {"env.device"}
    assert {c.partition(".")[0] for c in theirs if c not in ours} == {"http", "metric", "plan", "env"}
    assert (theirs["plan.system"], theirs["plan.linear"], theirs["plan.sample"]) == ("http", "packed@threads:2", "torch")
    assert main(["collect", str(tmp_path), "--compare", "system=kernelswap", "--metrics", "ttft_p50_s"]) == 0
    assert "one pair" in capsys.readouterr().out


async def broken(asked: Asked) -> AsyncIterator[bytes]:
    yield error_page("500 Oh", b"broken")


async def broken_after_warmup(asked: Asked) -> AsyncIterator[bytes]:
    yield chunk([1], "stop") if asked.index < 2 else error_page("500 Oh", b"broken")
    await asyncio.sleep(0)
    yield END


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (broken, "fails to serve the warm-up: HTTP 500: broken"),
        (broken_after_warmup, "http refused every request; the first because"),
    ],
    ids=["warm-up", "all"],
)
def test_a_server_that_serves_nothing_is_a_failed_run(script: Any, reason: str) -> None:
    with serving(script) as stub, pytest.raises(ValueError, match=reason):
        load(config(stub.url), 100, None, progress=False)


def test_a_server_that_dies_in_the_run_leaves_what_was_measured() -> None:
    alive = [True]
    behave = answering(0.0, 0.01)

    async def dies(asked: Asked) -> AsyncIterator[bytes]:
        alive[0] = asked.index < 4
        if not alive[0]:
            raise Drop
        async for part in behave(asked):
            yield part

    def page() -> bytes:
        if not alive[0]:
            raise Drop
        return SCRAPE.format(10).encode()

    with serving(dies, {"/metrics": page, "/version": page}) as stub:
        served = load(config(stub.url), 100, None, progress=False)
    metrics = served.metrics(config(stub.url))
    assert (metrics["num_completed"], metrics["num_refused"]) == (2, 3) and "server_output_tokens" not in metrics
    assert served.plan == {} and served.system["version"] == "unknown"


def test_a_label_of_ones_own_and_what_cannot_work() -> None:
    found = config("http://h", system="vllm-0.26")
    found.validate()
    with pytest.raises(ValueError, match=r"http\.url="):
        replace(found, http=HttpConfig("h")).validate()
    with pytest.raises(ValueError, match="rate"):
        replace(found, workload=WorkloadConfig(rate=-1)).validate()
