"""256 clients at once: no token is lost or changes its place, and the process that speaks HTTP has little to do."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from framework import SamplingParams
from framework.llm import LLM

from .servers import process

NUM_STREAMS, NUM_TOKENS = 256, 64
MAX_CPU_S = 150e-6
"""Of the server's own process, per streamed token."""


@pytest.mark.slow
def test_streams_are_the_offline_tokens_and_cost_little(tmp_path, offline: LLM) -> None:
    prompts = [f"def f{i}(a, b):\n" for i in range(NUM_STREAMS)]
    params = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    expected = [output.outputs[0].token_ids for output in offline.generate(prompts, SamplingParams(**params), use_tqdm=False)]
    with process(tmp_path) as (running, server), ThreadPoolExecutor(NUM_STREAMS) as pool:
        list(pool.map(lambda prompt: server.stream("/v1/completions", prompt=prompt, max_tokens=2), prompts))  # warm
        before, own = cpu_s(running.pid), resource.getrusage(resource.RUSAGE_SELF)
        streams = list(pool.map(lambda prompt: server.stream("/v1/completions", prompt=prompt, **params), prompts))
        used, now = cpu_s(running.pid) - before, resource.getrusage(resource.RUSAGE_SELF)
        told = list(
            pool.map(lambda prompt: server.stream("/v1/completions", prompt=prompt, return_token_ids=True, **params), prompts)
        )
    num_tokens = NUM_STREAMS * NUM_TOKENS
    client = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
    print(f"per token: server {used / num_tokens * 1e6:.0f} us, clients {client / num_tokens * 1e6:.0f} us")
    assert [len(chunks) for chunks in streams] == [NUM_TOKENS] * NUM_STREAMS, "a chunk per token"
    assert [[token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] for chunks in told] == expected
    assert used / num_tokens <= MAX_CPU_S


def cpu_s(pid: int) -> float:
    """User's and system's time of a process, with all its threads and without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
