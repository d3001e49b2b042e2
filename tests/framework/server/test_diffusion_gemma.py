"""DiffusionGemma behind the server, which draws its canvases anew: what of the API it can do, and what is refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from framework import LLM, AsyncEngine, SamplingParams
from framework.engine.diffusion import DiffusionConfig
from framework.server.config import ServerConfig

from ...models.test_diffusion_gemma import ARCHITECTURE, TEXT
from ..multimodal.checkpoints import picture
from ..multimodal.test_serving import url
from .servers import HTTPServer, engine_config, serving
from .test_images import message, part

TOOLS = [{"type": "function", "function": {"name": "f"}}]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
MESSAGES: Any = [{"role": "user", "content": "def read(path):"}]
Served = tuple[HTTPServer, LLM, AsyncEngine]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    architecture = {**ARCHITECTURE, "text_config": {**TEXT, "vocab_size": 2048}}
    config = engine_config(
        name="d", load_format="dummy", architecture=architecture, tokenizer="tiny", dtype="float32", max_model_len=128
    )
    config = replace(config, diffusion=DiffusionConfig(max_passes=3))
    engine = AsyncEngine(config)
    with serving(engine, ServerConfig(served_model_name=["d"], chat_template=TEMPLATE)) as server:
        yield server, LLM(config), engine
    engine.shutdown()


def offline(llm: LLM, **params: Any) -> Any:
    given = {"temperature": 0, "seed": 3, "max_tokens": 20, "ignore_eos": True, **params}
    return llm.chat(MESSAGES, SamplingParams(**given), chat_template=TEMPLATE, use_tqdm=False)[0]


def test_conversations(served: Served) -> None:
    """At once and in a stream; several completions; up to a text that ends it, where canvases meet."""
    server, llm, _ = served
    expected = offline(llm).outputs[0].text
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ask: Any = client.chat.completions.create
        given: Any = {"model": "d", "messages": MESSAGES, "temperature": 0, "seed": 3, "max_tokens": 20}
        given["extra_body"] = {"ignore_eos": True}
        found = ask(**given)
        assert found.choices[0].message.content == expected and found.usage.completion_tokens == 20
        assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(**given, stream=True)) == expected
        for start in range(3, len(expected) - 3, 7):
            stop = expected[start : start + 3]
            told = ask(**given, stop=[stop]).choices[0]
            assert (told.message.content, told.finish_reason) == (expected[: expected.index(stop)], "stop")
        drawn, wanted = ask(**{**given, "temperature": 0.7}, n=3), offline(llm, n=3, temperature=0.7).outputs
        assert [choice.message.content for choice in drawn.choices] == [each.text for each in wanted]


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"messages": message(part(url(picture(1))))}, "messages", "this engine takes none"),
        ({"presence_penalty": 1.0}, "presence_penalty", "block diffusion"),
        ({"frequency_penalty": -0.5}, "frequency_penalty", "block diffusion"),
        ({"repetition_penalty": 1.2}, "repetition_penalty", "block diffusion"),
        ({"bad_words": ["import"]}, "bad_words", "block diffusion"),
        ({"response_format": {"type": "json_object"}}, "response_format", "block diffusion"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs", "block diffusion"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "block diffusion"),
        ({"use_beam_search": True, "n": 2}, None, "beam search cannot work"),
        ({"logit_bias": {"5000": 1}}, "logit_bias", "5000"),
        ({"logprobs": True, "top_logprobs": 99}, "logprobs", "99"),
        ({"max_tokens": 10_000}, None, "maximum context length is 128"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tool_choice", "block diffusion"),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], param: str | None, said: str, served: Served) -> None:
    """And the engine goes on."""
    server, llm, _ = served
    given = {"model": "d", "messages": MESSAGES, "temperature": 0, "seed": 3, "max_tokens": 20, "ignore_eos": True}
    status, body = server.post("/v1/chat/completions", **{**given, **asked})
    assert status == 400 and said in body["error"]["message"], body
    assert param is None or body["error"]["param"] == param, body
    status, body = server.post("/v1/chat/completions", **given)
    assert status == 200 and body["choices"][0]["message"]["content"] == offline(llm).outputs[0].text


def test_forms_are_refused_at_every_door_by_the_field_that_asks(served: Served) -> None:
    server, _, _ = served
    asked = {"/v1/responses": ({"input": "a", "text": {"format": {"type": "json_object"}}}, "text")}
    asked["/v1/completions"] = {"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"
    for path, (body, param) in asked.items():
        status, found = server.post(path, model="d", **body)
        assert status == 400 and found["error"]["param"] == param and "block diffusion" in found["error"]["message"], found
    status, _ = server.post("/v1/responses", model="d", input="a", max_output_tokens=4, text={"format": {"type": "text"}})
    assert status == 200


def test_what_a_request_may_ask_for(served: Served) -> None:
    """Bias and allowed tokens are of every pass; log-probabilities of the last."""
    server, llm, _ = served
    given = {"model": "d", "messages": MESSAGES, "temperature": 0, "seed": 3, "max_tokens": 10, "ignore_eos": True}
    status, body = server.post("/v1/chat/completions", **given, logit_bias={"70": 100})
    token = llm.get_tokenizer().decode([70])
    assert status == 200 and body["choices"][0]["message"]["content"] == token * 10, body
    status, body = server.post("/v1/chat/completions", **given, allowed_token_ids=[70, 71])
    assert status == 200 and set(body["choices"][0]["message"]["content"]) <= set(llm.get_tokenizer().decode([70, 71])), body
    status, body = server.post("/v1/chat/completions", **given, logprobs=True, top_logprobs=2)
    entries = body["choices"][0]["logprobs"]["content"]
    assert status == 200 and len(entries) == 10 and all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_streams_of_an_engine_beside_each_other(served: Served) -> None:
    _, llm, engine = served
    seeds = [3, 4, 5]
    params = {seed: SamplingParams(temperature=0, seed=seed, max_tokens=20, ignore_eos=True) for seed in seeds}
    text = MESSAGES[0]["content"]
    expected = [llm.generate(text, params[seed], use_tqdm=False)[0].outputs[0].token_ids for seed in seeds]

    async def whole(seed: int) -> list[int]:
        async for output in engine.generate(text, params[seed], str(seed)):
            found = output.outputs[0].token_ids
        return found

    async def together() -> list[list[int]]:
        return await asyncio.gather(*map(whole, seeds))

    assert asyncio.run(together()) == expected


def test_two_models_in_one_process(served: Served) -> None:
    """Used alternately: one that denoises, and one that generates token by token."""
    _, llm, _ = served
    other, params = LLM(engine_config(name="tiny")), SamplingParams(temperature=0, seed=3, max_tokens=20, ignore_eos=True)
    jobs = [(llm, "def f"), (other, "def f")]
    rounds = [[each.generate(text, params, use_tqdm=False)[0].outputs[0].token_ids for each, text in jobs] for _ in range(3)]
    first, *others = rounds
    assert others == [first, first] and first[0] != first[1]
    other.shutdown()
    assert llm.generate("def f", params, use_tqdm=False)[0].outputs[0].token_ids == first[0]
