"""Two engines with the tiny model behind a router: every request gets what one engine gives it, offline and over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from framework import LLM, BeamSearchParams, EngineConfig, RequestOutput, SamplingParams, StructuredOutputsParams
from framework.config import CacheConfig, ModelConfig, ParallelConfig
from framework.metrics import Counter

from .server.servers import HTTPServer
from .server.test_lifecycle import read_all
from .test_replicas import assert_gone

PROMPTS = ["def main():\n", "import sys\nimport os\n", "class A:\n", "# a comment\nx = 1\n", "for i in range(10):\n    "]


def config(dp: int, router: str = "round_robin", **model: Any) -> EngineConfig:
    return EngineConfig(
        ModelConfig("tiny", dtype="float32", **model),
        CacheConfig(num_blocks=256),
        parallel=ParallelConfig(dp=dp),
        router=router,
        kernels={"default": "reference"},
        num_threads=1,
    )


@pytest.fixture(scope="module")
def one() -> Iterator[LLM]:
    llm = LLM(config(1))
    yield llm
    llm.shutdown()


@pytest.fixture(scope="module")
def two() -> Iterator[LLM]:
    llm = LLM(config(2, "least_loaded"))
    yield llm
    llm.shutdown()


def mixed(count: int) -> tuple[list[str], list[SamplingParams]]:
    """Every kind of request, each with several of the prompts."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {},
        {"seed": 5, "temperature": 0.8, "top_p": 0.9},
        {"n": 3},
        {"stop": ["\n"], "temperature": 0},
        {"logprobs": 2, "prompt_logprobs": 1},
        {"structured_outputs": StructuredOutputsParams(regex="[a-z]{2,4}-[0-9]{2}")},
        {"temperature": 1.3, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "bad_words": ["return"]},
    ]
    params = [SamplingParams(**{"max_tokens": 8, **kinds[i % len(kinds)]}) for i in range(count)]
    return [PROMPTS[i % len(PROMPTS)] for i in range(count)], params


def told(outputs: list[RequestOutput]) -> list[Any]:
    return [(output.prompt, output.prompt_token_ids, output.prompt_logprobs, output.outputs) for output in outputs]


def test_what_a_request_gets_does_not_depend_on_its_replica(one: LLM, two: LLM) -> None:
    """Not even where chance decides, and the request brought no seed."""
    prompts, params = mixed(40)
    before = tokens_by_replica(two)
    outputs = two.generate(prompts, params, use_tqdm=False)
    assert told(outputs) == told(one.generate(prompts, params, use_tqdm=False))
    served = {i: total - before[i] for i, total in tokens_by_replica(two).items()}
    assert len(served) == 2 and min(served.values()) > 40
    assert sum(served.values()) == sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    for llm in (one, two):  # a refused one takes no seed
        with pytest.raises(ValueError, match="max_model_len"):
            llm.generate(["x", {"prompt_token_ids": [5] * 100_000}], use_tqdm=False)
    again = SamplingParams(max_tokens=6)
    assert told(two.generate(PROMPTS, again, use_tqdm=False)) == told(one.generate(PROMPTS, again, use_tqdm=False))


def tokens_by_replica(llm: LLM) -> dict[str, int]:
    found = (m for m in llm.get_metrics() if isinstance(m, Counter) and m.name == "vllm:generation_tokens")
    return {m.labels["engine"]: m.value for m in found}


def test_beams_chats_and_controls(one: LLM, two: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=4)
    for mine, theirs in zip(two.beam_search(PROMPTS[:2], params), one.beam_search(PROMPTS[:2], params), strict=True):
        assert [sequence.tokens for sequence in mine.sequences] == [sequence.tokens for sequence in theirs.sequences]
    chats = [
        llm.chat(
            [{"role": "user", "content": "import"}],
            SamplingParams(max_tokens=4, seed=1),
            chat_template="{{ messages[0].content }}",
            use_tqdm=False,
        )
        for llm in (one, two)
    ]
    assert told(chats[0]) == told(chats[1])
    assert two.plan().keys() == one.plan().keys() and two.reset_prefix_cache()
    assert two.get_default_sampling_params() == one.get_default_sampling_params()
    with pytest.raises(NotImplementedError):
        two.sleep()


def test_models_that_pool() -> None:
    llms = [LLM(config(dp, runner="pooling")) for dp in (1, 2)]
    expected, found = (llm.embed(PROMPTS, use_tqdm=False) for llm in llms)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.outputs.embedding, b.outputs.embedding)
    for llm in llms:
        with pytest.raises(ValueError, match="pools"):
            llm.generate(PROMPTS, use_tqdm=False)
        llm.shutdown()


@pytest.mark.slow
def test_a_server_of_two_engines() -> None:
    """Started by its flags; counts by the label engine add up to what clients were told; when one is killed the other serves on;
    nothing is left at the end."""
    words = ["serve", "tiny", "--host", "127.0.0.1", "--port", "0", "--num-gpu-blocks-override", "256", "--device", "cpu"]
    words += ["--data-parallel-size", "2", "--router", "least_loaded"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-m", "framework.cli", *words], env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        try:
            address = next(filter(None, (re.search(r"listening on http://127.0.0.1:(\d+)$", line) for line in run.stderr)))
            server = HTTPServer(int(address[1]))

            def ask(i: int) -> dict[str, int]:
                status, answer = server.post(
                    "/v1/completions", model="tiny", prompt=PROMPTS[i % 5], max_tokens=20 + i, ignore_eos=True, n=1 + i % 2
                )
                assert status == 200
                return answer["usage"]

            with ThreadPoolExecutor(8) as pool:
                usages = list(pool.map(ask, range(16)))
            chunks = server.stream("/v1/completions", model="tiny", prompt="import", max_tokens=5, ignore_eos=True)
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks)
            found: defaultdict[str, dict[str, float]] = defaultdict(dict)
            for family in text_string_to_metric_families(server.request("GET", "/metrics")[1]):
                for sample in family.samples:
                    if not sample.name.endswith("_bucket"):
                        found[sample.name][sample.labels.get("engine", "")] = sample.value
            assert found["vllm:generation_tokens_total"].keys() == {"0", "1"} and all(
                found["vllm:generation_tokens_total"].values()
            )
            told_tokens = sum(usage["completion_tokens"] for usage in usages) + 5
            assert sum(found["vllm:generation_tokens_total"].values()) == told_tokens
            live = server.request("GET", "/live")[1]
            assert live["generation_tokens"] == told_tokens and live["num_blocks"] == 2 * 255 and live["num_blocks_used"] == 0
            assert server.request("GET", "/health")[0] == 200
            engines = children(run.pid)
            assert_one_can_be_killed(server, engines)
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) == 0
        finally:
            run.kill()
    assert len(engines) >= 2
    assert_gone(engines)


def assert_one_can_be_killed(server: HTTPServer, engines: list[int]) -> None:
    """Clients that leave free their blocks; of those that stay, half lose their engine, and the server serves on."""
    path, long = "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 600, "ignore_eos": True}
    for _ in range(4):
        with server.open(path, stream=True, **long) as stream:
            assert stream.recv(1000)
    while (live := server.request("GET", "/live")[1])["num_running"] + live["num_blocks_used"]:
        time.sleep(0.05)
    streams = [server.open(path, stream=True, **long) for _ in range(4)]
    found = [bytearray(stream.recv(1000)) for stream in streams]
    os.kill(next(pid for pid in engines if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()), signal.SIGKILL)
    for stream, text in zip(streams, found, strict=True):
        with stream:
            read_all(stream, text)
    assert sorted(text.count(b"data: {") >= 600 for text in found) == [False, False, True, True]
    lost = [text for text in found if b"killed by SIGKILL" in text]
    assert len(lost) == 2 and all(re.search(rb"replica [01]'s process ended with exit code -9", text) for text in lost)
    assert server.request("GET", "/health")[0] == 200
    assert server.post(path, model="tiny", prompt="a", max_tokens=3)[0] == 200
    assert len(set(re.findall(r'vllm:num_requests_running{engine="(\d)"', server.request("GET", "/metrics")[1]))) == 1


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
