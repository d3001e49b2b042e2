"""Bodies that are too long or too slow, queues that are full, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from framework import AsyncEngine
from framework.server.config import ServerConfig

from .servers import HTTPServer, serving

PATH = "/v1/completions"
TIMEOUTS = {"head_timeout_s": 0.3, "body_timeout_s": 0.5, "send_timeout_s": 0.3, "keep_alive_s": 1.0}
LONG = {"prompt": "def f():\n", "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def strict(engine: AsyncEngine) -> Iterator[HTTPServer]:
    """May hold two completions beyond the engine's 256."""
    with serving(engine, ServerConfig(max_body_bytes=10_000, max_num_queued_reqs=2, **TIMEOUTS)) as server:
        yield server


def test_long_bodies_are_refused_before_they_are_read(strict: HTTPServer) -> None:
    status, answer = strict.request("POST", PATH, b"x" * 100_000_000)
    assert status == 413 and "10000 bytes" in answer["error"]["message"] and answer["error"]["code"] == 413
    assert strict.post(PATH, prompt="a", max_tokens=1)[0] == 200


def test_long_bodies_in_pieces_are_refused(strict: HTTPServer) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(20):
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_comes_a_byte_at_a_time_is_not_waited_for(strict: HTTPServer) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        connection.settimeout(0.1)
        start, answer = time.monotonic(), b""
        while not answer and time.monotonic() < start + 5:
            connection.sendall(b" ")
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"code": 408' in answer and b"connection: close" in answer.lower()
        assert 0.4 < time.monotonic() - start < 4


def test_a_full_queue_refuses_and_says_when_to_come_again(strict: HTTPServer) -> None:
    with strict.open(PATH, **{**LONG, "prompt": ["a", "b", "c"], "n": 86}, stream=True) as connection:  # 258 completions
        connection.recv(100)
        status, answer, response = strict.answer("POST", PATH, {"prompt": "a", "max_tokens": 1})
        assert status == 503 and int(response.headers["retry-after"]) >= 1
        assert answer["error"]["type"] == "ServiceUnavailableError"
        assert strict.request("GET", "/health")[0] == 200
    deadline = time.monotonic() + 20
    while (status := strict.post(PATH, prompt="a", max_tokens=1)[0]) != 200:
        assert status == 503 and time.monotonic() < deadline
        time.sleep(0.05)


async def stats(engine: AsyncEngine) -> dict:
    return (await engine.report())["stats"]


def wait_until_idle(engine: AsyncEngine, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := asyncio.run(stats(engine)))["kv_usage"] or found["num_running"] or found["num_waiting"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


@pytest.mark.parametrize("body", [{"stream": True}, {}, {"stream": True, "n": 3}, {"prompt": ["a", "b"], "stream": True}])
def test_a_client_that_leaves_frees_its_blocks(engine: AsyncEngine, server: HTTPServer, body: dict) -> None:
    before = asyncio.run(stats(engine))["num_output_tokens"]
    connection = server.open(PATH, **{**LONG, **body})
    if body:
        connection.recv(100)  # the stream has begun
    else:
        time.sleep(0.3)  # the response has not, and never will
    connection.close()
    wait_until_idle(engine, 2)
    made = asyncio.run(stats(engine))["num_output_tokens"] - before
    assert made < 1500, "it was not finished, but ended"
    assert server.request("GET", "/load")[1] == {"server_load": 0}


def test_others_do_not_notice(engine: AsyncEngine, server: HTTPServer) -> None:
    body = {"prompt": "class A:\n", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    expected = server.post(PATH, **body)[1]["choices"][0]["text"]

    def leave(i: int) -> None:
        with server.open(PATH, **{**LONG, "prompt": f"{i}"}, stream=True) as connection:
            if i % 3:
                connection.recv(100 * i)

    with ThreadPoolExecutor(12) as pool:
        stayed = [pool.submit(server.stream, PATH, **body) for _ in range(3)]
        list(pool.map(leave, range(40)))
        for future in stayed:
            assert "".join(chunk["choices"][0]["text"] for chunk in future.result()) == expected
    wait_until_idle(engine, 3)


def test_a_client_that_does_not_read_holds_up_nobody(engine: AsyncEngine, server: HTTPServer) -> None:
    with server.open(PATH, **LONG, stream=True, logprobs=20):
        assert server.post(PATH, prompt="a", max_tokens=5)[0] == 200
        wait_until_idle(engine, 60)  # the engine goes on, and what it makes waits here


def test_two_requests_sent_at_once_are_answered_in_order(server: HTTPServer) -> None:
    data = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request * 2)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 2 or not found.endswith(b"}"):
            found += connection.recv(10_000)


def test_no_text_holds_up_the_tokenizer_for_nothing(server: HTTPServer) -> None:
    status, error = server.post("/tokenize", prompt="x" * 1_000_000)
    assert status == 400 and "1000000 characters" in error["error"]["message"]


def read_to_end(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize("begin", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET "])
def test_a_head_that_does_not_end_is_not_waited_for(strict: HTTPServer, begin: bytes) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as connection:
        connection.sendall(begin)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):  # far beyond the time it has
                connection.sendall(b"x" if begin else b"")
                time.sleep(0.05)
                connection.setblocking(False)
                try:
                    if not connection.recv(10_000):
                        break
                except BlockingIOError:
                    pass
                connection.setblocking(True)
            else:
                raise AssertionError("it was waited for")


def test_a_connection_is_kept_while_it_is_used(strict: HTTPServer) -> None:
    connection = HTTPConnection("127.0.0.1", strict.port, timeout=10)
    connection.connect()
    opened = connection.sock
    for _ in range(5):
        connection.request("GET", "/version")
        assert connection.getresponse().read()
        time.sleep(0.4)
        assert connection.sock is opened


def test_a_head_may_not_be_of_any_length(strict: HTTPServer) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"x" * 2**16)


def test_a_client_that_never_reads_does_not_keep_its_place(engine: AsyncEngine, strict: HTTPServer) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", strict.port))
        data = json.dumps({"prompt": "a", "n": 64, "max_tokens": 2000, "ignore_eos": True, "logprobs": 20, "stream": True}).encode()
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
        connection.sendall(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        deadline = time.monotonic() + 30
        while not strict.request("GET", "/load")[1]["server_load"]:
            assert time.monotonic() < deadline
        while strict.request("GET", "/load")[1]["server_load"]:
            assert time.monotonic() < deadline, "its completions are still in work"
            time.sleep(0.05)
    made = asyncio.run(stats(engine))["num_running"]
    assert made == 0


def test_a_client_that_leaves_after_two_requests_ends_both(
    engine: AsyncEngine, server: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = asyncio.run(stats(engine))["num_output_tokens"]
    data = json.dumps({**LONG, "stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall((head + data) * 2)
        connection.recv(100)
    wait_until_idle(engine, 2)
    assert asyncio.run(stats(engine))["num_output_tokens"] - before < 1500
    assert not caplog.records, "the first went on, and failed at writing"
