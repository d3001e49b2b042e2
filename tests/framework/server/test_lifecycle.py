"""Start and end of the server as a process: SIGTERM lets requests end, and nothing waits for an engine that is dead."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .servers import HTTPServer, command, process

PATH = "/v1/completions"


def read_all(connection: socket.socket, found: bytearray) -> None:
    """To the end of the stream, or of the connection."""
    while b"data: [DONE]" not in found and (piece := connection.recv(65536)):
        found += piece


def engine_pid(pid: int) -> int:
    """The child that computes; the other one is multiprocessing's resource tracker."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())


def test_sigterm_lets_running_requests_end(tmp_path) -> None:
    with process(tmp_path) as (running, server):
        body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True}
        found = bytearray()
        with server.open(PATH, stream=True, **body) as stream, server.open(PATH, **body) as whole:
            found += stream.recv(1000)
            time.sleep(0.2)
            running.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(ConnectionError):
                server.request("GET", "/health")
            read_all(stream, found)
            text = bytearray()
            read_all(whole, text)
        assert b"data: [DONE]" in found and found.count(b"data: {") == 300
        assert json.loads(text.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 300
        assert running.wait(20) == 0


def test_what_takes_too_long_to_end_is_cut(tmp_path) -> None:
    body = {"prompt": "a", "n": 64, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    whole = {**body, "stream": False}
    with process(tmp_path, drain_timeout_s=0.5) as (running, server), server.open(PATH, **body) as stream:
        found, refused = bytearray(stream.recv(1000)), bytearray()
        with server.open(PATH, **whole) as unanswered:
            time.sleep(0.2)
            running.send_signal(signal.SIGTERM)
            read_all(stream, found)
            read_all(unanswered, refused)
        assert b"the server is shutting down" in found
        assert refused.startswith(b"HTTP/1.1 503 ") and b"the server is shutting down" in refused
        assert running.wait(20) == 0


def test_a_dead_engine_ends_everything_with_an_error(tmp_path) -> None:
    with process(tmp_path) as (running, server):
        body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True}
        streams = [server.open(PATH, stream=True, **body) for _ in range(4)]
        found = [bytearray(stream.recv(1000)) for stream in streams]
        waiting = server.open(PATH, **body)
        time.sleep(0.2)
        os.kill(engine_pid(running.pid), signal.SIGKILL)
        killed = time.monotonic()
        threads = [threading.Thread(target=read_all, args=pair) for pair in zip(streams, found)]
        for thread in threads:
            thread.start()
        status = b""
        while not status.endswith(b"}"):
            status += waiting.recv(10_000)
        for thread in threads:
            thread.join(10)
        assert time.monotonic() < killed + 2
        assert status.startswith(b"HTTP/1.1 503 ") and b"ServiceUnavailableError" in status
        for text in found:
            last = [line for line in text.split(b"\n") if line.startswith(b"data: ")][-2]
            assert json.loads(last[6:])["error"]["code"] == 503
        status, answer = server.request("GET", "/health")
        assert status == 503 and "engine" in answer["error"]["message"]
        assert server.post(PATH, prompt="a")[0] == 503
        assert server.request("GET", "/version")[0] == 200
        for connection in (*streams, waiting):
            connection.close()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0


def test_an_address_that_is_taken_is_told_before_the_engine_starts(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments, environment = command(tmp_path, taken.getsockname()[1], 1)
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "cannot be listened to" in done.stderr


def test_who_reads_the_address_in_the_log_may_ask_at_once() -> None:
    words = ["serve", "tiny", "--host", "127.0.0.1", "--port", "0", "--num-gpu-blocks-override", "256"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    arguments = [sys.executable, "-m", "framework.cli", *words]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        try:
            address = next(filter(None, (re.search(r"listening on http://127.0.0.1:(\d+)$", line) for line in running.stderr)))
            status, answer = HTTPServer(int(address[1])).post(PATH, model="tiny", prompt="a", max_tokens=2)
            assert status == 200 and answer["usage"]["completion_tokens"] <= 2
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0
        finally:
            running.kill()


@pytest.mark.slow
def test_a_thousand_clients_that_are_killed_leave_nothing(tmp_path) -> None:
    stay = {"prompt": "class A:\n", "max_tokens": 300, "temperature": 0, "ignore_eos": True}

    def be_killed(seed: int) -> None:
        rng = random.Random(seed)
        body = {"prompt": f"def f{seed}():\n", "max_tokens": 1500, "ignore_eos": True, "n": rng.choice([1, 1, 1, 3])}
        with server.open(PATH, stream=True, **body) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of a process killed
            if rng.random() < 0.9:
                connection.recv(1)
                time.sleep(rng.random() * 0.5)

    with process(tmp_path) as (running, server), ThreadPoolExecutor(32) as pool:
        resident = {}
        expected = server.post(PATH, **stay)[1]["choices"][0]["text"]
        for first, end in ((0, 100), (100, 1000)):
            stayed = [pool.submit(server.stream, PATH, **stay) for _ in range(2)]
            list(pool.map(be_killed, range(first, end)))
            for future in stayed:
                assert "".join(chunk["choices"][0]["text"] for chunk in future.result()) == expected
            deadline = time.monotonic() + 10
            while (state := server.request("GET", "/live")[1])["num_running"] or state["num_waiting"] or state["num_blocks_used"]:
                assert time.monotonic() < deadline, state
                time.sleep(0.05)
            assert server.request("GET", "/load")[1] == {"server_load": 0}
            resident[end] = sum(resident_bytes(pid) for pid in (running.pid, engine_pid(running.pid)))
        print({count: f"{size / 2**20:.1f} MiB" for count, size in resident.items()})
        assert resident[1000] - resident[100] < 20 * 2**20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
