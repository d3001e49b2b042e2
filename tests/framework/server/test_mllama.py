"""Llama 3.2 behind the server: conversations with images to which its layers attend, beside another model in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from framework import LLM, AsyncEngine, SamplingParams
from framework.server.config import ServerConfig

from ..multimodal.checkpoints import make, picture
from ..multimodal.test_serving import url
from .servers import HTTPServer, engine_config, serving
from .test_images import message, part

TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<|image|>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
SHOWN = message({"type": "image", "image": picture(1)}, {"type": "text", "text": "what is <|image|>?"})
ASKED: Any = message(part(url(picture(1))), {"type": "text", "text": "what is <|image|>?"})
PAIR: Any = message(part(url(picture(1))), part(url(picture(2))))
Served = tuple[HTTPServer, LLM, AsyncEngine]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("mllama")
    make("mllama", folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    config = engine_config(name=str(folder), dtype="float32", limit_mm_per_prompt={"image": 1}, max_model_len=256)
    engine = AsyncEngine(config)
    with serving(engine, ServerConfig(served_model_name=["m"], chat_template=TEMPLATE)) as server:
        yield server, LLM(config), engine
    engine.shutdown()


def offline(llm: LLM, messages: Any = SHOWN, **params: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, **params}
    return llm.chat(messages, SamplingParams(**given), chat_template=TEMPLATE, use_tqdm=False)[0]


def test_a_conversation_with_an_image(served: Served) -> None:
    """At once and in a stream; several completions; up to a text that ends it."""
    server, llm, _ = served
    expected = offline(llm).outputs[0].text
    assert expected != offline(llm, message({"type": "text", "text": "what is <|image|>?"})).outputs[0].text
    more = {"ignore_eos": True}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ask: Any = client.chat.completions.create
        given: Any = {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 12, "extra_body": more}
        found = ask(**given)
        assert found.choices[0].message.content == expected and found.usage.prompt_tokens == 20
        chunks = [chunk.choices[0].delta.content or "" for chunk in ask(**given, stream=True)]
        assert len(chunks) > 5 and "".join(chunks) == expected
        stop = expected[5:8]
        told = ask(**given, stop=[stop]).choices[0]
        assert (told.message.content, told.finish_reason) == (expected[: expected.index(stop)], "stop")
        drawn = ask(**{**given, "temperature": 0.9}, n=3, seed=4)
        wanted = offline(llm, temperature=0.9, n=3, seed=4).outputs
        assert [choice.message.content for choice in drawn.choices] == [completion.text for completion in wanted]
        image = {"type": "input_image", "image_url": url(picture(1))}
        items: Any = message(image, {"type": "input_text", "text": "what is <|image|>?"})
        asked: Any = {"model": "m", "input": items, "temperature": 0, "max_output_tokens": 12, "extra_body": more}
        response = client.responses.create(**asked)
        assert response.output_text == expected
    status, body = server.post("/tokenize", model="m", messages=ASKED)
    assert status == 200 and body["tokens"] == offline(llm).prompt_token_ids
    status, body = server.post("/detokenize", model="m", tokens=body["tokens"])
    assert status == 200 and body["prompt"] == "<|image|>\0what is <|image|>?", body
    assert server.post("/detokenize", model="m", tokens=[259])[0] == 400


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"messages": PAIR}, "messages", "2 images, but this engine takes 1"),
        ({"messages": message(part("data:image/png;base64,aGVsbG8="))}, "messages", "no image that Pillow can open"),
        (
            {"messages": message(part(url(picture(1))), {"type": "text", "text": "a" * 300})},
            "prompt",
            "maximum context length is 256 tokens",
        ),
        ({"logit_bias": {"258": 5}}, "logit_bias", "258"),
        ({"allowed_token_ids": [258]}, "allowed_token_ids", "258"),
        ({"use_beam_search": True, "n": 2, "stream": True}, None, "stream"),
        ({"top_logprobs": 99, "logprobs": True}, "logprobs", "99"),
        ({"mm_processor_kwargs": {"do_resize": False}}, "mm_processor_kwargs", "mm_processor_kwargs"),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], param: str | None, said: str, served: Served) -> None:
    """And the engine goes on."""
    server, llm, _ = served
    given = {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    status, body = server.post("/v1/chat/completions", **{**given, **asked})
    assert status == 400 and said in body["error"]["message"], body
    assert param is None or body["error"]["param"] == param, body
    status, body = server.post("/v1/chat/completions", **given)
    assert status == 200 and body["choices"][0]["message"]["content"] == offline(llm).outputs[0].text


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_object"}, "max_tokens": 40},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {"65": 100}},
        {"use_beam_search": True, "n": 2},
        {"prompt_logprobs": 1},
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
def test_what_a_request_asks_for_goes_with_images(asked: dict[str, Any], served: Served) -> None:
    server, _, _ = served
    given = {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 6, "seed": 1}
    status, body = server.post("/v1/chat/completions", **{**given, **asked})
    assert status == 200, body
    text = body["choices"][0]["message"]["content"]
    if "structured_outputs" in asked:
        assert text in ("yes", "no")
    if "logit_bias" in asked:
        assert set(text) == {text[0]} and len(text) == 6
    if "logprobs" in asked:
        assert all(len(entry["top_logprobs"]) == 2 for entry in body["choices"][0]["logprobs"]["content"])


def test_one_image_of_many_clients_is_encoded_once(served: Served) -> None:
    _, llm, engine = served
    params = SamplingParams(temperature=0, max_tokens=6)
    prompt = {"prompt": "<|image|>!", "multi_modal_data": {"image": picture(7)}}
    expected = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids

    async def whole(name: str) -> list[int]:
        async for output in engine.generate(prompt, params, name):
            found = output.outputs[0].token_ids
        return found

    async def together() -> tuple[int, int]:
        before = (await engine.report())["stats"]
        assert await asyncio.gather(*(whole(str(i)) for i in range(8))) == [expected] * 8
        after = (await engine.report())["stats"]
        return tuple(after[name] - before[name] for name in ("num_image_hits", "num_images_encoded"))  # type: ignore[return-value]

    assert asyncio.run(together()) == (7, 1)


def test_two_models_in_one_process(served: Served, tmp_path: Path) -> None:
    """Used alternately."""
    make("llava", tmp_path)
    _, mllama, _ = served
    llava = LLM(engine_config(name=str(tmp_path), dtype="float32"))
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    jobs = [
        (llm, {"prompt": f"{token} see", "multi_modal_data": {"image": picture(3)}})
        for llm, token in ((mllama, "<|image|>"), (llava, "<image>"))
    ]
    first, *others = [[llm.generate(job, params, use_tqdm=False)[0].outputs[0].token_ids for llm, job in jobs] for _ in range(3)]
    assert others == [first, first] and first[0] != first[1]
    llava.shutdown()
    assert mllama.generate(jobs[0][1], params, use_tqdm=False)[0].outputs[0].token_ids == first[0]
