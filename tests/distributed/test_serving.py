"""``kernelswap serve`` with several ranks, as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework import LLM, SamplingParams

from ..framework.server.servers import HTTPServer
from ..framework.server.test_lifecycle import PATH, engine_pid, read_all
from .test_faults import LIMIT_S, ROOT, runs, shared_memory, wait_until

OPTIONS = ("--device", "cpu", "--dtype", "float32", "--kernels", "default=reference", "--num-gpu-blocks-override", "256")


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], HTTPServer, list[int]]]:
    """The process, the server, and the processes of the engine and its ranks."""
    words = ["serve", "tiny", "--host", "127.0.0.1", "--port", "0", "--tensor-parallel-size", "2", *OPTIONS]
    command = [sys.executable, "-m", "framework.cli", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        try:
            address = next(filter(None, (re.search(r"listening on http://127.0.0.1:(\d+)$", line) for line in running.stderr)))
            engine = engine_pid(running.pid)
            children = [word for path in Path(f"/proc/{engine}/task").glob("*/children") for word in path.read_text().split()]
            yield running, HTTPServer(int(address[1])), [engine, *map(int, children)]
        finally:
            running.kill()


def is_idle(server: HTTPServer) -> bool:
    live = server.request("GET", "/live")[1]
    return not (live["num_running"] + live["num_waiting"] + live["num_blocks_used"])


def test_streams_are_those_of_one_process_and_sigterm_lets_them_end() -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    alone = LLM("tiny", device="cpu", dtype="float32", kernels={"default": "reference"}, num_gpu_blocks_override=64)
    expected = alone.generate(["import os"], params, use_tqdm=False)[0].outputs[0].text
    before = shared_memory()
    with serving() as (running, server, processes):
        assert len(processes) == 3
        chunks = server.stream(PATH, prompt="import os", max_tokens=20, temperature=0)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
        with server.open(PATH, stream=True, prompt="a", max_tokens=100, ignore_eos=True) as stream:
            found = bytearray(stream.recv(1000))
            running.send_signal(signal.SIGTERM)
            read_all(stream, found)
        assert found.count(b"data: {") == 100 and running.wait(60) == 0
    wait_until(lambda: not any(map(runs, processes)))
    assert shared_memory() <= before


def test_clients_that_leave_free_their_blocks_and_a_killed_rank_ends_the_streams_and_the_health() -> None:
    with serving() as (running, server, processes):
        for _ in range(4):
            with server.open(PATH, stream=True, prompt="a", max_tokens=2000, ignore_eos=True) as stream:
                assert stream.recv(1000)
            server.open(PATH, prompt="a", max_tokens=2000, ignore_eos=True).close()
        wait_until(lambda: is_idle(server), 60)
        with server.open(PATH, stream=True, prompt="a", max_tokens=2000, ignore_eos=True) as stream:
            found = bytearray(stream.recv(1000))
            os.kill(processes[2], signal.SIGKILL)
            read_all(stream, found)
        last = [line for line in found.split(b"\n") if line.startswith(b"data: ")][-2]
        error = json.loads(last[6:])["error"]
        assert error["code"] == 503 and re.search(r"rank 1 .process \d+. ended with exit code -9", error["message"])
        status, answer = server.request("GET", "/health")
        assert status == 503 and "rank 1" in answer["error"]["message"]
        wait_until(lambda: not any(map(runs, processes)), LIMIT_S)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0 and running.stderr is not None
        assert "leaked" not in running.stderr.read(), "semaphores of processes that were killed, in /dev/shm"
