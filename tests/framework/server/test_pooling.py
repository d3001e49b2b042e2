"""The endpoints of models that pool: what LLM gives, through OpenAI's client and byte by byte."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from safetensors.torch import load_file, save_file
from schemathesis import GenerationMode

import framework
from framework import LLM, AsyncEngine, EngineConfig, PoolingParams, SamplingParams
from framework.server.config import ServerConfig

from .conftest import idle
from .servers import HTTPServer, engine_config, serving
from .test_openapi import check

TEXTS = ["import os\n", "def read(path):\n    return open(path).read()\n", "import sys\n"]
EMBEDS: dict[str, Any] = {"runner": "pooling", "architecture": {"matryoshka_dimensions": [16, 32]}}
SCORES: dict[str, Any] = {
    "runner": "pooling",
    "architecture": {"classifier_from_token": [300, 301], "method": "from_2_way_softmax"},
}
CLASSES: dict[str, Any] = {
    "architecture": {"classifier_from_token": [300, 301, 302], "id2label": {"0": "low", "1": "middle", "2": "high"}}
}


@dataclass
class Pooling:
    """A server, what is behind it, and the same offline."""

    engine: AsyncEngine
    server: HTTPServer
    offline: LLM


def serve(config: EngineConfig) -> Iterator[Pooling]:
    engine = AsyncEngine(config)
    with serving(engine, ServerConfig(max_num_prompts=8)) as server:
        yield Pooling(engine, server, LLM(config))
    engine.shutdown()


@pytest.fixture(scope="module")
def embeds() -> Iterator[Pooling]:
    yield from serve(engine_config(**EMBEDS))


@pytest.fixture(scope="module")
def scores() -> Iterator[Pooling]:
    yield from serve(engine_config(**SCORES))


@pytest.fixture
def client(embeds: Pooling) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embeds.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_embeddings_by_the_openai_client(embeds: Pooling, client: openai.OpenAI) -> None:
    expected = [output.outputs.embedding for output in embeds.offline.embed(TEXTS, use_tqdm=False)]
    tokens = [embeds.offline.get_tokenizer().encode(text) for text in TEXTS]
    for given in (TEXTS, tokens):  # the client asks for base64
        found = client.embeddings.create(model="tiny", input=given)
        assert [item.index for item in found.data] == [0, 1, 2]
        np.testing.assert_allclose([item.embedding for item in found.data], expected, atol=2e-6)
        assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
    for one in (TEXTS[0], tokens[0]):
        (item,) = client.embeddings.create(model="tiny", input=one, encoding_format="float").data
        np.testing.assert_allclose(item.embedding, expected[0], atol=2e-6)
    short = np.array(client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=16).data[0].embedding)
    full = np.array(expected[0][:16])
    np.testing.assert_allclose(short, full / np.linalg.norm(full), atol=2e-6)


def test_embeddings_that_cannot_be(client: openai.OpenAI, embeds: Pooling) -> None:
    with pytest.raises(openai.BadRequestError, match="dimensions=17 cannot work: it must be one of 16, 32") as wrong:
        client.embeddings.create(model="tiny", input="a", dimensions=17)
    assert wrong.value.param == "dimensions"
    for given in ([], [[]], ["a"] * 9, [10**6], "import os\n" * 3000):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="tiny", input=given)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.InternalServerError, match="does not support generation: it pools") as refused:
        client.completions.create(model="tiny", prompt="a")
    assert refused.value.status_code == 501
    for path in ("/v1/embeddings", "/pooling"):
        status, found = embeds.server.post(path, messages=[{"role": "user", "content": "a"}])
        assert status == 400 and "for models that embed images, and this one takes texts" in found["error"]["message"]
    status, found = embeds.server.post("/v1/embeddings", input=[1, 2], prompt_name="query")
    assert status == 400 and "prompt_name='query' cannot work: it is for texts" in found["error"]["message"]
    status, found = embeds.server.post("/v1/embeddings", input="import os\n" * 3000, truncate_prompt_tokens=5)
    assert status == 200 and found["usage"]["prompt_tokens"] == 5
    asyncio.run(idle(embeds.engine))


def test_pooling_gives_what_encode_gives(embeds: Pooling) -> None:
    status, found = embeds.server.post("/pooling", input=TEXTS, task="token_embed")
    expected = embeds.offline.encode(TEXTS, pooling_task="token_embed", use_tqdm=False)
    assert status == 200 and found["object"] == "list"
    for item, output in zip(found["data"], expected, strict=True):
        np.testing.assert_allclose(item["data"], output.outputs.data, atol=2e-6)
    _, found = embeds.server.post("/pooling", input=TEXTS[0], use_activation=False, encoding_format="base64")
    raw = np.frombuffer(base64.b64decode(found["data"][0]["data"]), "<f4")
    given = PoolingParams(use_activation=False)
    np.testing.assert_allclose(raw, embeds.offline.encode(TEXTS[0], given, use_tqdm=False)[0].outputs.data, atol=2e-5)
    assert embeds.server.post("/pooling", input="a", task="classify")[0] == 400


def test_scores_of_embeddings_are_cosines(embeds: Pooling) -> None:
    vectors = np.array([output.outputs.embedding for output in embeds.offline.embed(TEXTS, use_tqdm=False)])
    for first, second in (("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2")):
        status, found = embeds.server.post("/score", **{first: TEXTS[0], second: TEXTS})
        assert status == 200 and [item["index"] for item in found["data"]] == [0, 1, 2]
        np.testing.assert_allclose([item["score"] for item in found["data"]], vectors @ vectors[0], atol=2e-6)
    outputs = embeds.offline.score(TEXTS, TEXTS[::-1], use_tqdm=False)
    np.testing.assert_allclose([o.outputs.score for o in outputs], (vectors * vectors[::-1]).sum(1), atol=2e-6)
    assert embeds.server.post("/v1/score", text_1=TEXTS, text_2=TEXTS[:2])[0] == 400
    assert embeds.server.post("/score", text_1=TEXTS)[0] == 400
    assert embeds.server.post("/classify", input="a")[0] == 400
    with pytest.raises(ValueError, match="3 texts cannot be scored against 2"):
        embeds.offline.score(TEXTS, TEXTS[:2])
    assert embeds.server.post("/score", text_1="a", text_2="a")[0] == 200


def test_a_reranker(scores: Pooling) -> None:
    """Pairs are one prompt, and the score says how much likelier the second answer is."""
    expected = [output.outputs.score for output in scores.offline.score(TEXTS[0], TEXTS, use_tqdm=False)]
    joined = [output.outputs.probs[0] for output in scores.offline.classify([TEXTS[0] + text for text in TEXTS], use_tqdm=False)]
    np.testing.assert_allclose(expected, joined, atol=1e-6)
    _, found = scores.server.post("/v1/score", queries=TEXTS[0], documents=TEXTS)
    np.testing.assert_allclose([item["score"] for item in found["data"]], expected, atol=2e-6)
    order = np.argsort(-np.array(expected)).tolist()
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        status, found = scores.server.post(path, query=TEXTS[0], documents=TEXTS, top_n=2)
        assert status == 200 and [item["index"] for item in found["results"]] == order[:2]
        assert [item["document"]["text"] for item in found["results"]] == [TEXTS[i] for i in order[:2]]
    assert scores.server.post("/rerank", query="a", documents=[])[0] == 400
    assert scores.server.post("/v1/embeddings", input="a")[0] == 400


PATHS = ("/v1/embeddings", "/pooling", "/classify", "/score", "/rerank")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_is_one_that_is_described(embeds: Pooling, path: str, mode: GenerationMode) -> None:
    operation = schemathesis.openapi.from_url(f"{embeds.server.url}/openapi.json")[path]["POST"]

    @settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        check(case)

    run()
    assert embeds.server.post("/v1/embeddings", input="a")[0] == 200


def test_classes_have_names() -> None:
    for pooling in serve(engine_config(**CLASSES)):
        status, found = pooling.server.post("/classify", input=TEXTS)
        assert status == 200
        for item, output in zip(found["data"], pooling.offline.classify(TEXTS, use_tqdm=False), strict=True):
            np.testing.assert_allclose(item["probs"], output.outputs.probs, atol=2e-6)
            assert item["label"] == ["low", "middle", "high"][int(np.argmax(item["probs"]))] and item["num_classes"] == 3
        assert pooling.server.post("/score", text_1="a", text_2="b")[0] == 400
        with pytest.raises(ValueError, match="tells 3 classes apart"):
            pooling.offline.score("a", "b")


def test_a_model_that_computes_no_numbers_is_the_servers_error(tmp_path: Path) -> None:
    """One request's, or one of several that run beside each other; the next one is served as if nothing had been."""
    folder = tmp_path / "tiny"
    shutil.copytree(Path(framework.__file__).parent / "assets" / "tiny", folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
    weights[name][300] = float("nan")
    save_file(weights, folder / "model.safetensors")
    for pooling in serve(engine_config(name=str(folder), **EMBEDS)):
        for inputs in ([[300, 5]], [[5, 6], [7, 300]], [5, 300]):
            status, found = pooling.server.post("/v1/embeddings", model=str(folder), input=inputs)
            assert (status, found["error"]["message"]) == (500, "the model computed no numbers for this request")
        assert pooling.server.post("/v1/embeddings", model=str(folder), input=[5, 6])[0] == 200
        assert not np.isfinite(pooling.offline.embed([{"prompt_token_ids": [5, 300]}])[0].outputs.embedding).any()


def test_the_async_engine(embeds: Pooling) -> None:
    async def run() -> None:
        found = [output async for output in embeds.engine.encode(TEXTS[0])]
        assert len(found) == 1 and found[0].finished
        expected = embeds.offline.encode(TEXTS[0], use_tqdm=False)[0]
        np.testing.assert_allclose(found[0].outputs.data, expected.outputs.data, atol=2e-6)
        assert found[0].prompt_token_ids == expected.prompt_token_ids
        for wrong in (embeds.engine.generate("a", SamplingParams()), embeds.engine.encode("a", PoolingParams(dimensions=5))):
            with pytest.raises(ValueError):
                await anext(wrong)

    asyncio.run(run())
