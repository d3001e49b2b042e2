"""Start and end of the server as a process: SIGTERM lets requests end, and nothing waits for an engine that is dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .servers import HTTPServer

PATH = "/v1/completions"
PROGRAM = """
import sys
from framework.server import run
from framework.server.config import ServerConfig
from tests.framework.server.servers import engine_config

if __name__ == "__main__":
    run(engine_config(), ServerConfig(host="127.0.0.1", port=int(sys.argv[1]), drain_timeout_s=float(sys.argv[2])))
"""


@contextmanager
def process(tmp_path, drain_timeout_s: float = 60.0) -> Iterator[tuple[subprocess.Popen, HTTPServer]]:
    program = tmp_path / "serve.py"
    program.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    running = subprocess.Popen([sys.executable, str(program), str(port), str(drain_timeout_s)], env=environment)
    server = HTTPServer(port)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert server.request("GET", "/health")[0] == 200
                break
            except ConnectionError:
                assert running.poll() is None and time.monotonic() < deadline, "the server does not start"
                time.sleep(0.1)
        yield running, server
    finally:
        running.kill()
        running.wait()


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
    with process(tmp_path, drain_timeout_s=0.5) as (running, server), server.open(PATH, **body) as stream:
        found = bytearray(stream.recv(1000))
        running.send_signal(signal.SIGTERM)
        read_all(stream, found)
        assert b"the server is shutting down" in found
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
    program = tmp_path / "serve.py"
    program.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
        command = [sys.executable, str(program), str(taken.getsockname()[1]), "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "cannot be listened to" in done.stderr
