"""Ray Serve: a second replica comes with the load, and serves on when the first is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import LLM, SamplingParams

from ..distributed.test_faults import runs, wait_until
from ..distributed.test_tokens import config_of
from .clusters import actors

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'kernelswap[ray]'")
from ray import serve

from framework.ray.serving import app, application

pytestmark = pytest.mark.ray
START_S = 300.0
"""How long replicas may take to start, on a machine with other work."""
PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def url(cluster: Any) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = config_of(None)
    serve.run(application(config, max_replicas=2, target_ongoing_requests=1, upscale_delay_s=0, served_model_name=["tiny"]))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def complete(url: str, max_tokens: int) -> str:
    """The text."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_S) as answer:
        return json.load(answer)["choices"][0]["text"]


def replicas() -> set[int]:
    """Processes of those that serve."""
    found = [deployment for status in serve.status().applications.values() for deployment in status.deployments.values()]
    num_running = sum(deployment.replica_states.get("RUNNING", 0) for deployment in found)
    pids = {actor["Pid"] for actor in actors("ServeReplica") if actor["State"] == "ALIVE"}
    return pids if len(pids) == num_running else set()


def children(pid: int) -> list[int]:
    return [int(child) for tasks in Path(f"/proc/{pid}/task").iterdir() for child in (tasks / "children").read_text().split()]


def test_a_second_replica_comes_with_the_load_and_serves_on_when_the_first_is_killed(url: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    expected = LLM(config_of(None)).generate([PROMPT], params, use_tqdm=False)[0].outputs[0].text
    assert complete(url, 8) == expected
    (first,) = replicas()
    done = threading.Event()

    def keep_busy() -> None:
        while not done.is_set():
            complete(url, 140)

    clients = [threading.Thread(target=keep_busy) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: len(replicas()) == 2, START_S)
    finally:
        done.set()
        for client in clients:
            client.join()
    (second,) = replicas() - {first}
    engines = children(first)
    assert engines
    os.kill(first, signal.SIGKILL)
    for _ in range(10):
        assert complete(url, 8) == expected
    assert runs(second) and not runs(first)
    wait_until(lambda: not any(map(runs, engines)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": 8001}, "port cannot be given: the proxy of Ray Serve listens"),
        ({"max_replica": 2}, "LLM has no max_replica in this version"),
        ({"max_body_bytes": 0}, "max_body_bytes=0 cannot work"),
        ({"tensor_parallel_size": 3, "distributed_executor_backend": "mpi"}, "distributed_executor_backend='mpi' cannot work"),
    ],
)
def test_what_cannot_work_is_refused_before_a_replica_starts(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        application("tiny", **given)


def test_arguments_of_the_command_line_are_read(cluster: Any) -> None:
    """They come as text."""
    given = {"model": "tiny", "max_replicas": "4", "max_num_seqs": "10", "enable_prefix_caching": "false", "device": "cpu"}
    deployment = app(given | {"tensor_parallel_size": "2"})._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.max_replicas, scaling.target_ongoing_requests, deployment.max_ongoing_requests) == (4, 5, 10)
    assert deployment.ray_actor_options["num_cpus"] == 2
