"""Block diffusion behind the server: tokens that come many at a time, streams among them, and requests that go away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from framework import LLM, AsyncEngine, EngineConfig, SamplingParams
from framework.engine.diffusion import DiffusionConfig
from framework.sampling_params import RequestOutputKind
from framework.server.config import ServerConfig

from .servers import HTTPServer, engine_config, serving

SDAR = {
    "model_type": "sdar",
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "block_size": 4,
    "mask_token_id": 2047,
}
KINDS = {"sdar": SDAR}
ASKED = {"model": "m", "temperature": 0, "ignore_eos": True, "seed": 3}


def config_of(kind: str) -> EngineConfig:
    config = engine_config(name=kind, load_format="dummy", architecture=KINDS[kind], tokenizer="tiny", dtype="float32")
    return replace(config, diffusion=DiffusionConfig(threshold=0.0))


Served = tuple[HTTPServer, LLM]


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    config = config_of(request.param)
    engine = AsyncEngine(config)
    with serving(engine, ServerConfig(served_model_name=["m"])) as server:
        yield server, LLM(config)
    engine.shutdown()


def offline(llm: LLM, prompts: list[list[int]], **params: Any) -> list[Any]:
    asked = SamplingParams(temperature=0, seed=3, ignore_eos=True, **params)
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)


def test_streams_say_what_answers_say(served: Served) -> None:
    """Prompts and outputs that end anywhere within a canvas."""
    server, llm = served
    prompts = [[(7 * i + 3) % 1900 + 20 for i in range(length)] for length in range(1, 10)]
    for count in (1, 3, 9):
        expected = [output.outputs[0].text for output in offline(llm, prompts, max_tokens=count)]
        status, found = server.post("/v1/completions", prompt=prompts, max_tokens=count, **ASKED)
        assert status == 200 and [choice["text"] for choice in found["choices"]] == expected
        assert found["usage"]["completion_tokens"] == count * len(prompts)
        texts = dict.fromkeys(range(len(prompts)), "")
        for event in server.stream("/v1/completions", prompt=prompts, max_tokens=count, **ASKED):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
        assert list(texts.values()) == expected


def test_stop_strings_are_found_where_canvases_meet(served: Served) -> None:
    server, llm = served
    prompt = [30, 31, 32, 33, 34]
    whole = offline(llm, [prompt], max_tokens=24)[0].outputs[0]
    assert len(whole.text) > 12
    for start in range(1, len(whole.text) - 3):
        stop = whole.text[start : start + 3]
        if "\ufffd" in stop:
            continue
        expected = whole.text[: whole.text.index(stop)]
        output = offline(llm, [prompt], max_tokens=24, stop=[stop])[0].outputs[0]
        assert (output.text, output.finish_reason, output.stop_reason) == (expected, "stop", stop)
        if start % 4 == 1:
            asked = {**ASKED, "prompt": prompt, "max_tokens": 24, "stop": stop}
            events = server.stream("/v1/completions", **asked)
            assert "".join(choice["text"] for event in events for choice in event["choices"]) == expected
            status, found = server.post("/v1/completions", **asked)
            assert status == 200 and found["choices"][0]["text"] == expected
            assert found["usage"]["completion_tokens"] == len(output.token_ids)


def test_completions_of_a_seed_can_be_had_again(served: Served) -> None:
    server, _ = served
    asked = {"model": "m", "prompt": [30, 31], "max_tokens": 10, "n": 3, "temperature": 1.0, "ignore_eos": True}
    first, again = (server.post("/v1/completions", **asked, seed=5)[1]["choices"] for _ in range(2))
    assert [choice["text"] for choice in first] == [choice["text"] for choice in again]
    assert len({choice["text"] for choice in first}) == 3
    status, found = server.post("/v1/completions", **asked, seed=-1)
    assert status == 200 and len(found["choices"]) == 3
    status, found = server.post("/v1/completions", **{**asked, "n": 2, "stream": False}, logprobs=2)
    assert status == 200 and all(len(choice["logprobs"]["tokens"]) == 10 for choice in found["choices"])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"repetition_penalty": 1.3}, "repetition_penalty"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ({"prompt_logprobs": 2}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"use_beam_search": True, "n": 2}, "beam"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], told: str, served: Served) -> None:
    server, llm = served
    status, found = server.post("/v1/completions", **{**ASKED, "prompt": [5, 6], "max_tokens": 4, **asked})
    assert status == 400 and told in found["error"]["message"], found
    status, found = server.post("/v1/completions", **ASKED, prompt=[5, 6], max_tokens=4)
    assert status == 200 and found["choices"][0]["text"] == offline(llm, [[5, 6]], max_tokens=4)[0].outputs[0].text


def test_how_a_model_denoises_is_no_request_s_to_say(served: Served) -> None:
    """As other fields that the API does not have, these change nothing."""
    server, llm = served
    expected = offline(llm, [[5, 6]], max_tokens=9)[0].outputs[0].text
    for asked in (
        {"diffusion": {"threshold": "x", "max_passes": -1}},
        {"diffusion_config": {"max_passes": 10**9}},
        {"canvas": None},
    ):
        status, found = server.post("/v1/completions", **ASKED, prompt=[5, 6], max_tokens=9, **asked)
        assert status == 200 and found["choices"][0]["text"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_go_away_leave_the_others_alone(kind: str) -> None:
    """At any pass over any canvas."""
    config = config_of(kind)
    prompt = {"prompt_token_ids": [40, 41, 42, 43, 44, 45]}
    params = SamplingParams(temperature=0, seed=3, max_tokens=30, ignore_eos=True)
    expected = LLM(config).generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids

    async def whole(engine: AsyncEngine) -> list[int]:
        found: list[int] = []
        async for output in engine.generate(prompt, replace(params, output_kind=RequestOutputKind.DELTA), "stays"):
            found += output.outputs[0].token_ids
        return found

    async def goes(engine: AsyncEngine, name: str, outputs: int) -> None:
        stream = engine.generate(prompt, replace(params, seed=9, output_kind=RequestOutputKind.DELTA), name)
        for _ in range(outputs):
            await anext(stream)
        await stream.aclose()

    async def together(engine: AsyncEngine) -> list[int]:
        first, *_ = await asyncio.gather(whole(engine), *(goes(engine, str(i), i) for i in range(4)))
        return first

    engine = AsyncEngine(config)
    try:
        assert asyncio.run(together(engine)) == list(expected)
        assert asyncio.run(whole(engine)) == list(expected)
    finally:
        engine.shutdown()
