"""Adapters over HTTP: as models, loaded and unloaded by clients, from below one folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from framework import LLM, AsyncEngine, LoRARequest, SamplingParams
from framework.cli.flags import Parser, add_flags, given
from framework.config import CacheConfig, EngineConfig, ModelConfig
from framework.lora_request import LoraConfig
from framework.server.app import build_app
from framework.server.config import ServerConfig

from ...models.examples import EXAMPLES
from ..models.checkpoints import make
from .servers import HTTPServer, serving

pytest.importorskip("peft")
from ..models.lora.adapters import write_adapter

PROMPT = [5, 6, 7, 8, 9]
ASK: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    model = make(EXAMPLES["llama"], folder / "base")
    for number in (1, 2, 3):
        write_adapter(model, folder / "served" / str(number), 8, ["q_proj", "v_proj", "down_proj"], seed=number)
    write_adapter(model, folder / "elsewhere", 8, ["q_proj"])
    (folder / "served" / "link").symlink_to(folder / "elsewhere")
    (folder / "served" / "circle").symlink_to(folder / "served" / "circle")
    half = folder / "served" / "half"
    half.mkdir()
    for file in (folder / "elsewhere").iterdir():
        (half / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> EngineConfig:
    model = ModelConfig(str(folder / "base"), tokenizer="tiny")
    return EngineConfig(model, CacheConfig(num_blocks=100), lora=LoraConfig(True, 2, 16, 4), device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def engine(config: EngineConfig) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(config)
    yield engine
    engine.shutdown()


@pytest.fixture
def server(engine: AsyncEngine, folder: Path) -> Iterator[HTTPServer]:
    modules = {"first": str(folder / "served" / "1"), "broken": str(folder)}
    served = ServerConfig(
        served_model_name=["base"], lora_modules=modules, enable_runtime_lora=True, lora_dir=str(folder / "served")
    )
    with serving(engine, served) as server:
        yield server


def answer(server: HTTPServer, model: str) -> list[int]:
    status, found = server.post("/v1/completions", model=model, **ASK)
    assert status == 200 and found["model"] == model, found
    return found["choices"][0]["token_ids"]


def test_adapters_are_models(server: HTTPServer, config: EngineConfig, folder: Path) -> None:
    cards = {card["id"]: card for card in server.request("GET", "/v1/models")[1]["data"]}
    assert cards["base"]["parent"] is None
    assert cards["first"]["parent"] == "base" and cards["first"]["root"] == str(folder / "served" / "1")
    assert server.request("GET", "/v1/models/first")[1]["parent"] == "base"
    assert server.post("/v1/load_lora_adapter", lora_name="second", lora_path="2")[0] == 200
    llm = LLM(config)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    adapters = [None, *(LoRARequest(str(i), i, str(folder / "served" / str(i))) for i in (1, 2))]
    expected = [output.outputs[0].token_ids for output in llm.generate([PROMPT] * 3, params, use_tqdm=False, lora_request=adapters)]
    assert [answer(server, name) for name in ("base", "first", "second")] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3
    text = server.request("GET", "/metrics")[1]
    assert "vllm:lora_requests_info{" in text and 'max_lora="2"' in text
    assert server.post("/v1/unload_lora_adapter", lora_name="second") == (
        200,
        "Success: LoRA adapter 'second' removed successfully.",
    )
    assert server.post("/v1/completions", model="second", **ASK)[0] == 404


def test_new_weights_under_an_old_name(server: HTTPServer, folder: Path) -> None:
    assert server.post("/v1/load_lora_adapter", lora_name="a", lora_path="1")[0] == 200
    before = answer(server, "a")
    status, error = server.post("/v1/load_lora_adapter", lora_name="a", lora_path="2")
    assert status == 400 and "loaded already" in error["error"]["message"]
    assert server.post("/v1/load_lora_adapter", lora_name="a", lora_path="2", load_inplace=True)[0] == 200
    after = answer(server, "a")
    assert after != before
    assert server.post("/v1/load_lora_adapter", lora_name="a", lora_path="1", load_inplace=True)[0] == 200
    assert answer(server, "a") == before
    (folder / "served" / "empty").mkdir()
    status, error = server.post("/v1/load_lora_adapter", lora_name="a", lora_path="empty", load_inplace=True)
    assert status == 400 and "no adapter_config.json" in error["error"]["message"]
    assert answer(server, "a") == before, "the old weights stay"
    assert server.post("/v1/unload_lora_adapter", lora_name="a")[0] == 200


def test_what_only_some_engines_have_read_is_forgotten(
    server: HTTPServer, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its name others can be loaded, and the one before it goes on."""
    add_lora = engine.add_lora

    async def halfway(request: LoRARequest) -> bool:
        await add_lora(request)
        raise ValueError("replica 1 has no room")

    def fails(**body: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "add_lora", halfway)
            status, error = server.post("/v1/load_lora_adapter", **body)
        return status == 400 and "replica 1 has no room" in error["error"]["message"]

    assert fails(lora_name="b", lora_path="1")
    assert server.post("/v1/load_lora_adapter", lora_name="b", lora_path="2")[0] == 200
    before = answer(server, "b")
    assert fails(lora_name="b", lora_path="1", load_inplace=True)
    assert answer(server, "b") == before
    assert server.post("/v1/unload_lora_adapter", lora_name="b")[0] == 200


def test_of_loads_at_once_under_one_name_one_succeeds(server: HTTPServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        loads = [
            pool.submit(server.post, "/v1/load_lora_adapter", lora_name="org/twice", lora_path=str(1 + i % 2)) for i in range(4)
        ]
    assert sorted(load.result()[0] for load in loads) == [200, 400, 400, 400]
    assert answer(server, "org/twice") and server.request("GET", "/v1/models/org/twice")[0] == 200
    assert server.post("/v1/unload_lora_adapter", lora_name="org/twice")[0] == 200


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("../elsewhere", "must lie below"),
        ("/", "must lie below"),
        (".", "must lie below"),
        ("link", "must lie below"),
        ("half", "must lie below"),
        ("circle", "has no such folder"),
        ("none", "has no such folder"),
        ("1/adapter_config.json", "has no such folder"),
        ("\0", "null"),
    ],
)
def test_paths_of_clients_lead_below_one_folder(server: HTTPServer, path: str, told: str) -> None:
    status, error = server.post("/v1/load_lora_adapter", lora_name="x", lora_path=path)
    assert status == 400 and told in error["error"]["message"], error
    assert "x" not in [card["id"] for card in server.request("GET", "/v1/models")[1]["data"]]


def test_refusals(server: HTTPServer) -> None:
    status, error = server.post("/v1/completions", model="broken", **ASK)
    assert status == 400 and "no adapter_config.json" in error["error"]["message"], error
    status, error = server.post("/v1/load_lora_adapter", lora_name="base", lora_path="1")
    assert status == 400 and "the model's own name" in error["error"]["message"]
    status, error = server.post("/v1/load_lora_adapter", lora_name="a\nb", lora_path="1")
    assert status == 400 and "can be printed" in error["error"]["message"]
    assert server.post("/v1/unload_lora_adapter", lora_name="unknown")[0] == 404
    assert server.post("/v1/load_lora_adapter", lora_name="", lora_path="1")[0] == 400
    assert answer(server, "first"), "the server goes on"


def test_an_adapter_in_use_stays(server: HTTPServer) -> None:
    stream = server.open("/v1/completions", model="first", stream=True, **{**ASK, "max_tokens": 80})
    assert stream.recv(1)
    statuses = []
    while not statuses or statuses[-1] != 200:
        status, error = server.post("/v1/unload_lora_adapter", lora_name="first")
        assert status == 200 or "requests use it" in error["error"]["message"], error
        statuses.append(status)
    stream.close()


def test_a_request_that_comes_behind_the_end_of_its_adapter_takes_its_name_from_nobody(
    engine: AsyncEngine, server: HTTPServer, folder: Path
) -> None:
    """It was on its way when a client unloaded the adapter."""

    async def come_late() -> None:
        late = LoRARequest("late", 4, str((folder / "served" / "2").resolve()))
        async for _ in engine.generate({"prompt_token_ids": PROMPT}, SamplingParams(max_tokens=1), "late", lora_request=late):
            pass

    assert server.post("/v1/load_lora_adapter", lora_name="other", lora_path="2")[0] == 200
    assert server.post("/v1/unload_lora_adapter", lora_name="other")[0] == 200
    assert server.post("/v1/load_lora_adapter", lora_name="late", lora_path="2")[0] == 200
    assert server.post("/v1/unload_lora_adapter", lora_name="late")[0] == 200
    asyncio.run(come_late())
    for name in ("late", "other"):
        status, error = server.post("/v1/load_lora_adapter", lora_name=name, lora_path="3")
        assert status == 200, error
    assert answer(server, "late") == answer(server, "other"), "of the new weights"


def test_clients_change_nothing_unless_they_may(engine: AsyncEngine, folder: Path) -> None:
    with serving(engine, ServerConfig(served_model_name=["base"])) as server:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            status, error = server.post(path, lora_name="x", lora_path="1")
            assert status == 404 and "--enable-runtime-lora" in error["error"]["message"]


def test_configurations_that_cannot_work(engine: AsyncEngine, folder: Path) -> None:
    with pytest.raises(ValueError, match="enable_runtime_lora and lora_dir go together"):
        ServerConfig(enable_runtime_lora=True).validate()
    with pytest.raises(ValueError, match="lora_dir='/none/here' cannot work"):
        ServerConfig(enable_runtime_lora=True, lora_dir="/none/here").validate()
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        build_app(engine, ServerConfig(served_model_name=["base"], lora_modules={"base": "x"}))
    parser = Parser()
    add_flags(parser, "server", ServerConfig)
    found = given(parser.parse_args(["--lora-modules", "a=/x", "--lora-modules", "b=/y"]), ServerConfig)
    assert found == {"lora_modules": {"a": "/x", "b": "/y"}}
