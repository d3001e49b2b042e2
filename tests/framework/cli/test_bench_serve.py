"""``kernelswap bench serve`` against a server on a schedule."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from framework.cli import main
from framework.study.workload import WorkloadConfig, build_workload

from ..study.load.stub_server import Asked, answering, error_page, serving

TINY = {"/v1/models": b'{"data": [{"id": "tiny"}]}'}
SMALL = ("--num-prompts", "6", "--random-input-len", "5", "--random-output-len", "3", "--disable-tqdm")


def bench(url: str, *flags: str) -> int:
    return main(["bench", "serve", "--base-url", url, *SMALL, *flags])


def table(text: str) -> dict[str, str]:
    """Name -> value of every line."""
    return {name.strip(): value.strip() for name, colon, value in (line.rpartition(":") for line in text.splitlines()) if colon}


def test_the_table_is_that_of_vllm_and_the_row_that_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--request-rate", "100", "--max-concurrency", "2", "--goodput", "ttft:5000", "tpot:5000", "--percentile-metrics")
    flags += ("ttft,itl,e2el", "--metric-percentiles", "50,95", "--save-result", "--result-dir", str(tmp_path), "--label", "stub")
    with serving(answering(0.05, 0.0, 0.05), TINY) as stub:
        assert bench(stub.url, *flags) == 0
    found = table(capsys.readouterr().out)
    assert [asked.body["prompt"] for asked in stub.asked[:1]] == [
        build_workload(WorkloadConfig(num_requests=1, prompt_tokens=5, prompt_spread=0), 2048, None)[0].prompt_token_ids
    ]
    assert stub.most_at_once == 2 and len(stub.asked) == 6
    expected = {"Successful requests": "6", "Failed requests": "0", "Maximum request concurrency": "2"}
    expected |= {"Request rate configured (RPS)": "100.00", "Total input tokens": "30", "Total generated tokens": "18"}
    assert expected.items() <= found.items()
    assert found["Request goodput (req/s)"] == found["Request throughput (req/s)"]
    assert 45 < float(found["Median TTFT (ms)"]) < 500 and 100 < float(found["P95 E2EL (ms)"]) < 1000
    assert float(found["P95 queue (ms)"]) > 50
    assert {"Mean ITL (ms)", "P95 chunk gap (ms)"} < found.keys() and not any("TPOT" in name or "P99" in name for name in found)
    row = json.loads((tmp_path / "run.json").read_text())
    assert (row["system"], row["model.name"], row["http.max_concurrency"], row["metric.num_completed"]) == ("stub", "tiny", 2, 6)
    assert float(found["CPU time per token (us)"]) == pytest.approx(1e6 * row["metric.client_cpu_per_token_s"], abs=0.01)
    assert {"metric.ttft_p99_s", "metric.chunk_gap_p95_s"} < row.keys() and (tmp_path / "requests.csv").is_file()


def test_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    behave = answering(0.0)

    async def half(asked: Asked) -> AsyncIterator[bytes]:
        if asked.index % 2:
            yield error_page("503 Busy", b'{"error": {"message": "full"}}')
        async for part in behave(asked):
            yield part

    with serving(half, TINY) as stub:
        assert bench(stub.url) == 0
    out = capsys.readouterr().out
    assert table(out)["Failed requests"] == "3" and "3 failed: HTTP 503: full" in out


def test_a_server_that_serves_nothing_leaves_its_reason_in_the_row(tmp_path: Path) -> None:
    async def none(asked: Asked) -> AsyncIterator[bytes]:
        yield error_page("503 Busy", b"full")

    with serving(none, TINY) as stub:
        assert bench(stub.url, "--save-result", "--result-dir", str(tmp_path)) == 2
    row = json.loads((tmp_path / "run.json").read_text())
    assert row["status"] == "failed" and "http refused every request; the first because: HTTP 503: full" in row["error"]


def test_a_chat_is_asked_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    async def script(asked: Asked) -> AsyncIterator[bytes]:
        for content, reason in (("a", None), ("b", "stop")):
            yield b"data: " + json.dumps({"choices": [{"delta": {"content": content}, "finish_reason": reason}]}).encode() + b"\n\n"

    with serving(script, TINY) as stub:
        assert bench(stub.url, "--backend", "openai-chat", "--dataset-name", "python", "--extra-body", '{"top_k": 5}') == 0
    body = stub.asked[0].body
    (message,) = body["messages"]
    assert message["role"] == "user" and message["content"] and "prompt" not in body
    assert (body["max_completion_tokens"], body["top_k"]) == (3, 5)
    assert table(capsys.readouterr().out)["Total generated tokens"] == "12"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--goodput", "ttft"], "--goodput ttft is none of ttft, tpot, e2el with milliseconds"),
        (["--goodput", "itl:5"], "--goodput itl:5 is none of"),
        (["--percentile-metrics", "speed"], "--percentile-metrics speed is no latency"),
        (["--metric-percentiles", "101"], "--metric-percentiles 101 must be numbers from 0 to 100"),
        (["--metric-percentiles", "many"], "--metric-percentiles many must be numbers"),
        (["--max-concurrency", "0"], "http.max_concurrency=0 cannot work"),
        (["--endpoint", "/v1/embeddings"], "http.endpoint='/v1/embeddings' cannot work"),
        (["--request-rate", "-1", "--model", "tiny"], "rate"),
        ([], "no server answers at http://127.0.0.1:9"),
    ],
    ids=str,
)
def test_what_cannot_work(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("http://127.0.0.1:9", *flags) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["5", "{", "[]"])
def test_an_extra_body_is_an_object(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench("http://127.0.0.1:9", "--extra-body", text)
    assert "--extra-body" in capsys.readouterr().err
