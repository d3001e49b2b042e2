"""/v1/embeddings of a model with an image tower: what LLM gives, and bodies that somebody made to do harm."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from framework import LLM, AsyncEngine
from framework.server.config import ServerConfig

from ..models.pooling.test_towers import IMAGES, POSTSCRIPT, TEXTS, of_image, url, vectors, write
from .servers import HTTPServer, engine_config, serving


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HTTPServer, LLM]]:
    folder = tmp_path_factory.mktemp("clip")
    write(folder, "clip")
    config = engine_config(name=str(folder), dtype="float32")
    engine = AsyncEngine(config)
    with serving(engine, ServerConfig(served_model_name=["clip"])) as server:
        yield server, LLM(config)
    engine.shutdown()


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def part(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(index: int) -> str:
    data = io.BytesIO()
    IMAGES[index].save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def test_texts_and_images(clip: tuple[HTTPServer, LLM]) -> None:
    server, offline = clip
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model="clip", input=TEXTS)
    np.testing.assert_allclose([item.embedding for item in found.data], vectors(offline, TEXTS), atol=1e-6)
    for index in range(2):
        status, body = server.post("/v1/embeddings", model="clip", messages=message(part(data_url(index))))
        assert status == 200, body
        np.testing.assert_allclose(body["data"][0]["embedding"], vectors(offline, [of_image(IMAGES[index])])[0], atol=1e-6)
    for content in (TEXTS[0], [{"type": "text", "text": TEXTS[0]}]):
        status, body = server.post("/pooling", model="clip", messages=[{"role": "user", "content": content}])
        assert status == 200, body
        np.testing.assert_allclose(body["data"][0]["data"], vectors(offline, TEXTS[:1])[0], atol=1e-6)


def test_what_is_refused(clip: tuple[HTTPServer, LLM]) -> None:
    server, _ = clip
    image = part(data_url(0))
    for given, said in (
        ({}, "one of `input` and `messages`"),
        ({"input": "a", "messages": message(image)}, "one of `input` and `messages`"),
        ({"messages": []}, "must hold one text, or one image"),
        ({"messages": message(image, image)}, "found 2 parts"),
        ({"messages": message({"type": "text", "text": "a"}, image)}, "found 2 parts"),
        ({"messages": message({"type": "input_audio"})}, "must hold one text, or one image"),
        ({"messages": message(part("http://127.0.0.1:1/a.png"))}, "Other URLs are not fetched"),
        ({"messages": message(part("data:image/png;base64,####"))}, "holds no base64"),
        ({"messages": message(part("data:image/png;base64,aGVsbG8="))}, "no image that Pillow can open"),
        ({"messages": message(part(url(POSTSCRIPT)))}, "no image that Pillow can open"),
        ({"input": "a " * 100}, "at most 77"),
    ):
        status, body = server.post("/v1/embeddings", model="clip", **given)
        assert status == 400 and said in body["error"]["message"], body
    for path, given in (("/classify", {"input": "a"}), ("/score", {"text_1": "a", "text_2": "b"})):
        status, body = server.post(path, model="clip", **given)
        assert status == 400 and ("this model does embed" in str(body) or "compares texts with images" in str(body)), body
    assert server.post("/v1/embeddings", model="clip", input="dog")[0] == 200
