"""Engines on the verifying null executor, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework.clock import VirtualClock
from framework.config import CacheConfig, EngineConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.kv_cache.spec import PagedKV, group_layers
from framework.engine.request import Request
from framework.engine.speculation import Speculation
from framework.executor.null import NullExecutor
from framework.executor.shape import ModelShape
from framework.outputs import RequestOutput
from framework.sampling_params import SamplingParams

FULL = PagedKV(1, 64, 64, "float32")
WINDOWED = PagedKV(1, 64, 64, "float32", window=9)
WIDE = PagedKV(1, 64, 64, "float32", window=21)
MODELS = {"full": group_layers([FULL]), "windowed": group_layers([WINDOWED]), "hybrid": group_layers([FULL, WINDOWED, WIDE])}


def make_config(num_blocks: int = 100, block_size: int = 4, prefix_caching: bool = True, **scheduler: Any) -> EngineConfig:
    """With every check on."""
    scheduler = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "ttft_slo_s": 1.0, **scheduler}
    cache = CacheConfig(block_size=block_size, num_blocks=num_blocks, prefix_caching=prefix_caching, check_invariants=True)
    return EngineConfig(cache=cache, scheduler=SchedulerConfig(**scheduler))


def make_engine(
    config: EngineConfig | None = None,
    model: str = "full",
    vocab_size: int = 50,
    max_model_len: int = 200,
    num_drafts: int = 0,
    speculation: Speculation | None = None,
) -> Engine:
    """Without a tokenizer."""
    config = config or make_config()
    executor = NullExecutor(config, ModelShape(MODELS[model], vocab_size, max_model_len), num_drafts)
    return Engine(config, executor, InputProcessor(None, {}, ()), VirtualClock(), None, speculation)


def token_params(**given: Any) -> SamplingParams:
    """Parameters of a request without text."""
    return SamplingParams(**{"detokenize": False, "seed": 0, **given})


def finish(engine: Engine) -> dict[str, RequestOutput]:
    """Steps to the end; the last output of each request."""
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        outputs.update((output.request_id, output) for output in engine.step())
    return outputs


def run(engine: Engine, jobs: Sequence[tuple[Any, SamplingParams]], together: bool = True) -> list[RequestOutput]:
    """Serves prompts with their parameters, side by side or one after the other; the last output of each."""
    done: dict[str, RequestOutput] = {}
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), prompt, params)
        if not together:
            done |= finish(engine)
    done |= finish(engine)
    return [done[str(index)] for index in range(len(jobs))]


def tokens_of(output: RequestOutput) -> list[list[int]]:
    """Of each completion."""
    return [completion.token_ids for completion in output.outputs]


def tokens(outputs: Sequence[RequestOutput]) -> list[list[list[int]]]:
    """Of each completion of each."""
    return [tokens_of(output) for output in outputs]


def assert_idle(engine: Engine) -> None:
    """Nothing is left of any request."""
    assert not engine.has_unfinished() and not engine.processor.groups
    assert engine.manager.pool.num_free == engine.executor.num_blocks - 1
    assert engine.stats().num_running == engine.stats().num_waiting == 0
    engine.manager.check_invariants()


def make_request(token_ids: list[int], request_id: str = "r", **given: Any) -> Request:
    """Outside of any engine."""
    return Request(request_id, token_ids, token_params(), max_total=10_000, **given)
