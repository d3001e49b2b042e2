"""The engine in a process of its own, around the tiny model: streams and errors. Everything else about the process, in
test_engine_process.py, needs no model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from framework import AsyncEngine, EngineConfig, RequestOutputKind, SamplingParams
from framework.config import CacheConfig
from framework.llm import LLM

PROMPTS = ["def main():\n", "import sys\n", "class A:\n"]


def config() -> EngineConfig:
    return EngineConfig(cache=CacheConfig(num_blocks=256), num_threads=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = AsyncEngine(config())
    yield engine
    engine.shutdown()


async def collect(engine: AsyncEngine, prompt: str, params: SamplingParams) -> list:
    return [output async for output in engine.generate(prompt, params)]


def test_streams_add_up_to_what_the_offline_interface_gives(engine: AsyncEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, output_kind=RequestOutputKind.DELTA)

    async def run() -> list[list]:
        return await asyncio.gather(*(collect(engine, prompt, params) for prompt in PROMPTS))

    streams = asyncio.run(run())
    expected = LLM(config()).generate(PROMPTS, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    for stream, whole in zip(streams, expected):
        assert len(stream) > 5, "a stream comes in pieces"
        assert [o.finished for o in stream] == [False] * (len(stream) - 1) + [True]
        assert "".join(o.outputs[0].text for o in stream if o.outputs) == whole.outputs[0].text
        assert [t for o in stream for c in o.outputs for t in c.token_ids] == whole.outputs[0].token_ids


def test_the_first_delta_comes_before_the_last_token_is_sampled(engine: AsyncEngine) -> None:
    async def run() -> tuple[int, int]:
        before = (await engine.report())["stats"]["num_output_tokens"]
        params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        stream = engine.generate(PROMPTS[0], params)
        await anext(stream)
        sampled = (await engine.report())["stats"]["num_output_tokens"] - before
        rest = [output async for output in stream]
        return sampled, 1 + sum(len(c.token_ids) for output in rest for c in output.outputs)

    sampled, total = asyncio.run(run())
    assert 1 <= sampled < 400 and total == 400


def test_an_error_of_one_request_reaches_only_that_request(engine: AsyncEngine) -> None:
    async def run() -> list:
        bad = collect(engine, "x" * 100_000, SamplingParams(max_tokens=4))
        good = collect(engine, PROMPTS[0], SamplingParams(max_tokens=4))
        return await asyncio.gather(bad, good, return_exceptions=True)

    bad, good = asyncio.run(run())
    assert isinstance(bad, ValueError) and "max_model_len" in str(bad)
    assert good[-1].finished


def test_an_error_at_start_is_the_error_that_was_raised() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        AsyncEngine(EngineConfig(kernels={"sample": "nonsense"}))


def test_cumulative_outputs_end_as_the_offline_interface_gives_them(engine: AsyncEngine) -> None:
    params = SamplingParams(n=2, seed=7, max_tokens=12, logprobs=2, prompt_logprobs=1)

    async def run() -> list:
        return await collect(engine, PROMPTS[2], params)

    outputs = asyncio.run(run())
    whole = LLM(config()).generate(PROMPTS[2], params, use_tqdm=False)[0]
    last = outputs[-1]
    assert last.finished and last.outputs == whole.outputs and last.prompt_logprobs == whole.prompt_logprobs
    assert (last.prompt, last.prompt_token_ids) == (whole.prompt, whole.prompt_token_ids)
    for output in outputs:
        assert [c.index for c in output.outputs] == [0, 1], "all completions, even those without a token yet"
        for got, end in zip(output.outputs, whole.outputs):
            count = len(got.token_ids)
            assert got.token_ids == end.token_ids[:count] and end.text.startswith(got.text)
            assert got.logprobs == end.logprobs[:count]


def test_the_tokenizer_is_the_models(engine: AsyncEngine) -> None:
    tokenizer = asyncio.run(engine.get_tokenizer())
    assert tokenizer.decode(tokenizer.encode(PROMPTS[0]), skip_special_tokens=True) == PROMPTS[0]
