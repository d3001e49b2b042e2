"""The client against a server that does as it is told: times are compared with the server's own."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from framework.sampling_params import SamplingParams
from framework.study.load.client import Client
from framework.study.load.config import HttpConfig
from framework.study.load.driver import HttpRecord, Loaded, ask_all
from framework.study.load.metrics import client_metrics
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.records import RunRecord
from framework.study.workload import WorkloadRequest

from .stub_server import END, Asked, Drop, Script, answering, chunk, error_page, event, serving

LATE_S = 0.2
"""How much a busy machine may be behind."""


def requests(*arrivals_s: float, **given: float) -> list[WorkloadRequest]:
    sampling = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, seed=3)
    return [WorkloadRequest(arrival_s, [1, 2, 3], sampling, i, **given) for i, arrival_s in enumerate(arrivals_s)]


def ask(url: str, workload: list[WorkloadRequest], config: HttpConfig | None = None) -> list[HttpRecord]:
    return loaded(url, workload, config).records


def loaded(url: str, workload: list[WorkloadRequest], config: HttpConfig | None = None) -> Loaded:
    config = replace(config or HttpConfig(timeout_s=20), url=url)
    config.validate()

    async def run() -> Loaded:
        async with Client.open(config) as client:
            return await ask_all(client, config, await client.model(), workload, None)

    return asyncio.run(run())


async def bursts(asked: Asked) -> AsyncIterator[bytes]:
    """1, 3 and 2 tokens."""
    for ids in ([1], [2, 3, 4], [5, 6]):
        await asyncio.sleep(0.1)
        yield chunk(ids, "length" if 6 in ids else None)
    yield event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 6})
    yield END


def test_tokens_come_when_the_server_sends_them() -> None:
    with serving(bursts) as stub:
        (record,) = ask(stub.url, requests(0.0))
    (asked,) = stub.asked
    assert (record.status, record.finish_reason, record.counted_by) == ("ok", "length", "token_ids")
    assert list(record.token_ids) == [1, 2, 3, 4, 5, 6] and record.num_usage_tokens == 6
    came = [time_s - asked.came_s for time_s in asked.sent_s[:3]]
    assert list(record.chunk_times_s) == [record.token_times_s[i] for i in (0, 1, 4)]
    assert [record.token_times_s[i] for i in (2, 3, 5)] == [record.token_times_s[i] for i in (1, 1, 4)]
    for found, sent in zip(record.chunk_times_s, came):
        assert sent - 0.005 < found - record.sent_s < sent + LATE_S


def test_requests_are_sent_at_their_times_whatever_the_server_does() -> None:
    """The server answers nobody before it has been asked by all."""
    arrivals = [0.0, 0.05, 0.05, 0.3, 0.5]
    everyone = asyncio.Event()

    async def waiting(asked: Asked) -> AsyncIterator[bytes]:
        if asked.index == len(arrivals) - 1:
            everyone.set()
        await everyone.wait()
        yield chunk([1], "length")

    with serving(waiting) as stub:
        records = ask(stub.url, requests(*arrivals))
    assert [record.status for record in records] == ["ok"] * 5
    assert [record.arrival_s for record in records] == arrivals
    for record, asked in zip(records, stub.asked):
        assert record.arrival_s <= record.sent_s < record.arrival_s + LATE_S
        assert asked.came_s - stub.asked[0].came_s == pytest.approx(record.sent_s - records[0].sent_s, abs=LATE_S)
        assert record.queued_s == 0.0
    assert all(record.token_times_s[0] >= 0.5 for record in records)


def test_max_concurrency_holds_back_at_the_client_and_counts_apart() -> None:
    with serving(answering(0.1, 0.1)) as stub:
        records = ask(stub.url, requests(0.0, 0.0, 0.0, 0.05), HttpConfig(max_concurrency=2))
    assert stub.most_at_once == 2
    first, second, third, fourth = records
    assert first.queued_s == second.queued_s == 0.0
    for record, intended_s in ((third, 0.0), (fourth, 0.05)):
        assert record.queued_s == pytest.approx(0.2 - intended_s, abs=LATE_S / 2)
        assert record.arrival_s == record.sent_s == intended_s + record.queued_s
        assert record.token_times_s[0] - record.arrival_s == pytest.approx(0.1, abs=LATE_S / 2)


def test_in_a_closed_loop_a_user_comes_again_after_the_answer() -> None:
    workload = [replace(request, user=i % 2, think_time_s=0.1) for i, request in enumerate(requests(0, 0, 0, 0))]
    with serving(answering(0.05, 0.05)) as stub:
        records = ask(stub.url, workload)
    assert stub.most_at_once == 2
    for i in (2, 3):
        before = next(r for r in records if r.request_id == str(i - 2))
        again = next(r for r in records if r.request_id == str(i))
        assert again.arrival_s == before.ended_s + 0.1


async def no_answer(asked: Asked) -> AsyncIterator[bytes]:
    await asyncio.sleep(30)
    yield END


async def drip(asked: Asked) -> AsyncIterator[bytes]:
    while True:
        yield chunk([1])
        await asyncio.sleep(0.05)


async def endless_line(asked: Asked) -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65536


def parts(*parts: bytes, then: type[BaseException] | None = None) -> Script:
    async def script(asked: Asked) -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        if then is not None:
            await asyncio.sleep(0.05)
            raise then

    return script


HOSTILE: dict[str, tuple[Script, str, str]] = {
    "500": (parts(error_page("500 Oh", b'{"error": {"message": "broken"}}')), "refused", "HTTP 500: broken"),
    "400": (parts(error_page("400 Bad", b"too long")), "refused", "HTTP 400: too long"),
    "503": (parts(error_page("503 Busy", b"")), "refused", "HTTP 503: "),
    "redirect": (parts(b"HTTP/1.1 302 F\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"), "refused", "HTTP 302: "),
    "not HTTP": (parts(b"HTTP!\r\n\r\n"), "refused", "the connection failed: "),
    "dropped at once": (parts(then=Drop), "refused", "the connection failed: ServerDisconnectedError"),
    "dropped": (parts(chunk([1]), then=Drop), "failed", "the connection failed: "),
    "short": (parts(chunk([1])), "failed", "the stream ended before the answer did"),
    "malformed": (parts(chunk([1]), b"data: {\n\n"), "failed", "malformed event"),
    "error event": (parts(chunk([1]), event(error={"message": "lost"}), END), "failed", "the server reported an error: lost"),
    "no answer": (no_answer, "failed", "no complete answer 1 s after"),
    "slow": (drip, "failed", "no complete answer 1 s after"),
    "endless": (endless_line, "failed", "an event of more than"),
    "no tokens": (parts(END), "failed", "the stream brought no token"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_request_that_fails_has_its_reason_and_hurts_nobody(name: str) -> None:
    misbehave, status, reason = HOSTILE[name]
    behave = answering(0.01, 0.01)

    async def one_of_three(asked: Asked) -> AsyncIterator[bytes]:
        async for part in (misbehave if asked.index == 1 else behave)(asked):
            yield part

    start = time.perf_counter()
    with serving(one_of_three) as stub:
        first, bad, last = ask(stub.url, requests(0.0, 0.1, 0.2), HttpConfig(timeout_s=1))
    assert time.perf_counter() - start < 5
    assert (bad.status, first.status, last.status) == (status, "ok", "ok")
    assert bad.error is not None and bad.error.startswith(reason)
    assert list(first.token_ids) == list(last.token_ids) == [1, 2]


def test_a_stream_that_is_done_needs_no_end_of_the_connection() -> None:
    async def lingering(asked: Asked) -> AsyncIterator[bytes]:
        yield chunk([1], "stop")
        yield END
        await asyncio.sleep(30)

    with serving(lingering) as stub:
        (record,) = ask(stub.url, requests(0.0), HttpConfig(timeout_s=0.5))
    assert record.status == "ok" and len(record.token_times_s) == 1


def test_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    usual = {"model": "stub", "temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 3}
    usual |= {"stream": True, "stream_options": {"include_usage": True}}
    ours = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True, "priority": 0, "return_token_ids": True}
    with serving(answering(0.0)) as stub:
        ask(stub.url, requests(0.0))
        ask(stub.url, requests(0.0), HttpConfig(extensions=False, model="mine", extra_body={"logprobs": 1}))
    first, second = stub.asked
    assert first.body == usual | ours | {"prompt": [1, 2, 3], "max_tokens": 4}
    assert second.body == usual | {"model": "mine", "prompt": [1, 2, 3], "max_tokens": 4, "logprobs": 1}
    assert first.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("change", [{"endpoint": "/v1/chat/completions"}, {"prompts": "text"}], ids=str)
def test_a_prompt_as_text_needs_a_tokenizer(change: dict[str, str]) -> None:
    with serving(answering(0.0)) as stub, pytest.raises(ValueError, match="needs a tokenizer"):
        ask(stub.url, requests(0.0), HttpConfig(**change))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no server answers at http://127\.0\.0\.1:9"):
        ask("http://127.0.0.1:9", requests(0.0), HttpConfig(ready_timeout_s=0.3))


@pytest.mark.parametrize("page", [b"{}", b"nonsense", b'{"data": []}'], ids=str)
def test_a_server_that_names_no_model(page: bytes) -> None:
    with serving(answering(0.0), {"/v1/models": page}) as stub:
        with pytest.raises(ValueError, match=r"set http\.model"):
            ask(stub.url, requests(0.0))
        assert ask(stub.url, requests(0.0), HttpConfig(model="x"))[0].status == "ok"


@pytest.mark.parametrize(
    "change",
    [
        *({"url": url} for url in ("localhost:8000", "ftp://x", "http://me:word@host", "http://host/v1", "http://")),
        *({"endpoint": endpoint} for endpoint in ("v1/completions", "/v1/embeddings")),
        {"max_concurrency": 0},
        {"timeout_s": 0},
        {"prompts": "words"},
        {"extra_body": {"n": 2}},
        {"extra_body": {"stream": False}},
    ],
    ids=str,
)
def test_what_cannot_work_is_named(change: dict) -> None:
    (key,) = change
    with pytest.raises(ValueError, match=f"http.{key}="):
        HttpConfig(**change).validate()


def record(arrival_s: float, sent_s: float, times: list[float], chunks: list[float], **given: object) -> HttpRecord:
    found = HttpRecord("0", 0, arrival_s, 10, token_times_s=array("d", times), finish_reason="length", chunk_times_s=chunks)
    return replace(found, sent_s=sent_s, ended_s=chunks[-1] if chunks else sent_s, **given)


def test_metrics_by_hand() -> None:
    records = [
        record(0.0, 0.25, [1.0, 2.0, 2.0, 2.0, 4.0], [1.0, 2.0, 4.0], num_usage_tokens=5),
        record(2.0, 2.0, [4.0, 4.0, 5.0], [4.0, 5.0], num_usage_tokens=3, queued_s=1.5),
        record(3.0, 3.0, [], [], error="HTTP 500: x"),
    ]
    records[2].finish_reason = None
    found = compute_metrics(RunRecord([*records]), SLOConfig(tpot_s=0.6))
    assert found["ttft_mean_s"] == (1.0 + 2.0) / 2
    assert found["tpot_mean_s"] == (3.0 / 4 + 1.0 / 2) / 2
    assert found["itl_mean_s"] == (1 + 0 + 0 + 2 + 0 + 1) / 6
    assert found["e2e_mean_s"] == (4.0 + 3.0) / 2
    assert (found["num_completed"], found["num_refused"], found["num_failed"]) == (2, 1, 0)
    assert (found["duration_s"], found["goodput_per_s"], found["output_tokens_per_s"]) == (5.0, 0.2, 8 / 5)
    client = client_metrics(Loaded(records, cpu_s=0.4))
    assert client["chunk_gap_mean_s"] == (1 + 2 + 1) / 3
    assert client["tokens_per_chunk"] == 8 / 5
    assert (client["lateness_mean_s"], client["lateness_max_s"]) == (0.25 / 3, 0.25)
    assert client["client_queue_mean_s"] == 0.5
    assert (client["client_cpu_s"], client["client_cpu_per_token_s"]) == (0.4, 0.05)
    assert client["concurrency_max"] == 2  # from 2.0 to 4.0; the one that failed at once is no more
    assert client["output_tokens_per_s_max"] == 3  # three in the third second and three in the fifth
    assert client["num_usage_tokens"] == 8


def test_the_clients_own_time_is_counted() -> None:
    with serving(answering(0.05, 0.05)) as stub:
        found = loaded(stub.url, requests(0.0, 0.0))
    assert 0 < found.cpu_s < 1
    assert {"lateness_p99_s", "chunk_gap_p50_s"} <= client_metrics(found).keys()
    assert not any(name.startswith("client_queue") for name in client_metrics(found))
