"""The engine without a model: what a whole step costs when every running request decodes.

A step is schedule, step input, commit, prefix hashes, detokenize, stop strings on a tenth of the requests, and one output per
request. At most 1.5 ms for 256 requests and 8 microseconds per request for 4096, in CPU time: the engine has one thread, and
machines are shared. Run with ``pytest tests/benchmarks/test_engine_overhead.py --benchmark-only``.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from framework.build import build_engine, freeze_garbage
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.sampling_params import RequestOutputKind, SamplingParams

PROMPT_LEN, BLOCK_SIZE, MAX_TOKENS = 200, 16, 1500


def decoding_engine(num_requests: int, output_kind: RequestOutputKind = RequestOutputKind.DELTA) -> Engine:
    """An engine in which ``num_requests`` requests of different lengths decode."""
    config = EngineConfig(
        cache=CacheConfig(block_size=BLOCK_SIZE),
        scheduler=SchedulerConfig(max_num_seqs=num_requests, max_num_batched_tokens=num_requests * PROMPT_LEN * 2),
        executor=ExecutorConfig("null"),
    )
    engine = build_engine(config)
    for i in range(num_requests):
        stop = ["never to be seen", "nor this"] if i % 10 == 0 else None
        params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, output_kind=output_kind, stop=stop)
        prompt = [(i * 7 + position) % 2000 for position in range(PROMPT_LEN + i % BLOCK_SIZE)]
        engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
    while engine.stats().num_running < num_requests:
        engine.step()
    engine.step()
    freeze_garbage()  # as an engine's own process does
    return engine


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("num_requests", [16, 64, 256, 1024, 4096])
def test_step(benchmark: Any, num_requests: int) -> None:
    engine = decoding_engine(num_requests)
    outputs = benchmark.pedantic(engine.step, rounds=3 * BLOCK_SIZE, warmup_rounds=BLOCK_SIZE)
    assert len(outputs) == num_requests
    benchmark.extra_info["us_per_request"] = benchmark.stats.stats.median / num_requests * 1e6
    assert benchmark.stats.stats.median < (1.5e-3 if num_requests <= 256 else num_requests * 8e-6)


@pytest.mark.benchmark(timer=time.process_time)
def test_stream_of_requests(benchmark: Any) -> None:
    """Admission and the end of requests included: 256 seats, short completions, always a queue."""
    engine = decoding_engine(256)
    engine.abort([str(i) for i in range(256)])
    submitted = 0

    def step() -> None:
        nonlocal submitted
        while engine.stats().num_waiting < 16:
            prompt = [(submitted * 7 + position) % 2000 for position in range(PROMPT_LEN)]
            params = SamplingParams(max_tokens=32, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
            engine.add_request(f"s{submitted}", {"prompt_token_ids": prompt}, params)
            submitted += 1
        engine.step()

    benchmark.pedantic(step, rounds=200, warmup_rounds=50)
    assert submitted > 256
