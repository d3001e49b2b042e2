"""Servers in threads of a test, and clients that speak to them byte by byte."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from framework import AsyncEngine, EngineConfig
from framework.config import CacheConfig, ModelConfig
from framework.server.app import bind, build_server
from framework.server.config import ServerConfig


def engine_config(**model: Any) -> EngineConfig:
    """model: fields of ModelConfig."""
    return EngineConfig(ModelConfig(**model), cache=CacheConfig(num_blocks=512), device="cpu", num_threads=1)


@dataclass
class HTTPServer:
    """One that runs."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and body, JSON where it is."""
        status, found, _ = self.answer(method, path, body, headers)
        return status, found

    def answer(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = response.headers.get("content-type") == "application/json"
        return response.status, json.loads(text) if is_json else text.decode(), response

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        return self.request("POST", path, body)

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer."""
        status, text = self.post(path, stream=True, **body)
        assert status == 200, text
        events = text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""], events[-3:]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    def open(self, path: str, **body: Any) -> socket.socket:
        """A connection on which a request was sent."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(head.encode() + data)
        return connection


@contextmanager
def serving(engine: AsyncEngine, config: ServerConfig) -> Iterator[HTTPServer]:
    """A server around an engine, in a thread."""
    config.log_level = "warning"
    with bind("127.0.0.1", 0) as listener:
        server = build_server(engine, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        try:
            yield HTTPServer(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server does not end"


PROGRAM = """
import sys
from framework.server import run
from framework.server.config import ServerConfig
from tests.framework.server.servers import engine_config

if __name__ == "__main__":
    run(engine_config(), ServerConfig(host="127.0.0.1", port=int(sys.argv[1]), drain_timeout_s=float(sys.argv[2])))
"""


def command(folder: Path, port: int, drain_timeout_s: float) -> tuple[list[str], dict[str, str]]:
    """That starts the server as a process, and its environment."""
    program = folder / "serve.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    return [sys.executable, str(program), str(port), str(drain_timeout_s)], environment


@contextmanager
def process(folder: Path, drain_timeout_s: float = 60.0) -> Iterator[tuple[subprocess.Popen, HTTPServer]]:
    """A server as a process, once it serves."""
    port = free_port()
    arguments, environment = command(folder, port, drain_timeout_s)
    with started(arguments, port, environment) as running:
        yield running, HTTPServer(port)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def started(arguments: list[str], port: int, environment: dict[str, str], folder: Path | None = None) -> Iterator[subprocess.Popen]:
    """The process of a command that serves at ``port``, once it serves; ``folder``: where it runs, if not here."""
    running = subprocess.Popen(arguments, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert HTTPServer(port).request("GET", "/health")[0] == 200
                break
            except ConnectionError:
                assert running.poll() is None and time.monotonic() < deadline, "the server does not start"
                time.sleep(0.1)
        yield running
    finally:
        running.kill()
        running.wait()
