"""Adapters from the interfaces down: whoever else is in the batch, a request gets the tokens of the model that peft merges its
adapter into."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import LLM, AsyncEngine, LoRARequest, SamplingParams
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.lora_request import LoraConfig

from ..models.examples import EXAMPLES
from .models.checkpoints import make

pytest.importorskip("peft")
from .models.lora.adapters import linear_modules, write_adapter

RANKS = (1, 8, 16, 64, 4, 2, 3, 8)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
PROMPTS = [[(7 * i + j * j) % 200 for j in range(5 + 3 * i)] for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """Tokens of each prompt, the first without an adapter, each other one with its own."""
    model = make(EXAMPLES["llama"], folder / "base")
    targets = linear_modules(model)
    found = [greedy(model, PROMPTS[0])]
    for i, rank in enumerate(RANKS, 1):
        some = targets if i % 2 else [name for name in targets if name.endswith(("q_proj", "down_proj"))]
        merged = write_adapter(model, folder / str(i), rank, some, seed=i, use_rslora=i % 3 == 0)
        found.append(greedy(merged, PROMPTS[i]))
    assert len({tuple(tokens) for tokens in found}) == len(found)
    return found


def greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return found[0, len(prompt) :].tolist()


def adapter(folder: Path, number: int, **given: Any) -> LoRARequest | None:
    return LoRARequest(f"adapter-{number}", number, str(folder / str(number)), **given) if number else None


def config(folder: Path, max_loras: int = 3, **given: Any) -> EngineConfig:
    return EngineConfig(
        ModelConfig(str(folder / "base"), skip_tokenizer=True),
        CacheConfig(num_blocks=100, block_size=16, check_invariants=True),
        SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32),
        lora=LoraConfig(True, max_loras, 64, 8),
        num_threads=1,
        **given,
    )


def tokens(llm: LLM, prompts: list[list[int]], adapters: Any) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, GREEDY, use_tqdm=False, lora_request=adapters)]


@pytest.mark.parametrize("max_loras", [1, 3])
def test_every_request_has_its_own(folder: Path, expected: list[list[int]], max_loras: int) -> None:
    llm = LLM(config(folder, max_loras))
    adapters = [adapter(folder, number) for number in range(9)]
    assert tokens(llm, PROMPTS, adapters) == expected
    assert tokens(llm, PROMPTS[::-1], adapters[::-1]) == expected[::-1], "from the prefix cache"
    assert llm.list_loras() == set(range(1, 9))
    llm.shutdown()


def test_ranks(folder: Path, expected: list[list[int]]) -> None:
    parallel = ParallelConfig(tp=2, backend="threads")
    llm = LLM(config(folder, executor=ExecutorConfig("distributed"), parallel=parallel))
    assert tokens(llm, PROMPTS, [adapter(folder, number) for number in range(9)]) == expected
    with pytest.raises(ValueError, match="is no folder here"):
        llm.add_lora(LoRARequest("none", 99, str(folder / "none")))
    assert tokens(llm, PROMPTS[3:4], adapter(folder, 3)) == expected[3:4]
    llm.shutdown()


def test_requests_that_cannot_be_served_end_alone(folder: Path, expected: list[list[int]], tmp_path: Path) -> None:
    llm = LLM(config(folder))
    with pytest.raises(ValueError, match=r"prompt 0 of 1 failed: .*has no adapter_config.json"):
        tokens(llm, PROMPTS[:1], LoRARequest("empty", 50, str(tmp_path)))
    with pytest.raises(ValueError, match=r"2 prompts were given with lora_request=.*one each"):
        tokens(llm, PROMPTS[:2], [adapter(folder, 1)])
    assert tokens(llm, PROMPTS[2:3], adapter(folder, 2)) == expected[2:3]
    assert llm.remove_lora(2) and not llm.remove_lora(2)
    assert llm.add_lora(adapter(folder, 4)) and llm.pin_lora(4)  # type: ignore[arg-type]
    llm.shutdown()


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gpt2", "phi3", "mixtral"])
def test_families(name: str, tmp_path: Path) -> None:
    """Biases, norms of q and k, weights that are fused on disk, adapters of the attention alone; the llama is above. The prompt is
    as long as what transformers scales long ones' positions from."""
    model, prompt = make(EXAMPLES[name], tmp_path / "base"), [(7 * i + i * i) % 200 for i in range(48)]
    targets, wanted = linear_modules(model), [greedy(model, prompt)]
    for number, rank in ((1, 8), (2, 3)):
        wanted.append(greedy(write_adapter(model, tmp_path / str(number), rank, targets[::number], seed=number), prompt))
    llm = LLM(config(tmp_path, max_loras=2))
    assert tokens(llm, [prompt] * 3, [adapter(tmp_path, number) for number in range(3)]) == wanted
    assert len({tuple(found) for found in wanted}) == 3
    llm.shutdown()


def test_new_weights_in_place(folder: Path, expected: list[list[int]], tmp_path: Path) -> None:
    """Under the same name, id and path."""
    (tmp_path / "a").symlink_to(folder / "1")
    request = LoRARequest("changing", 7, str(tmp_path / "a"))
    llm = LLM(config(folder))
    assert tokens(llm, PROMPTS[1:2], request) == expected[1:2]
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(folder / "3")
    assert tokens(llm, PROMPTS[1:2], request) == expected[1:2], "nobody asked for new ones"
    assert tokens(llm, PROMPTS[3:4] * 2, LoRARequest("changing", 7, str(tmp_path / "a"), load_inplace=True)) == expected[3:4] * 2
    assert tokens(llm, PROMPTS[3:4], request) == expected[3:4]
    llm.shutdown()


@pytest.mark.parametrize("dp", [1, 2])
def test_in_processes(folder: Path, expected: list[list[int]], dp: int) -> None:
    async def one(engine: AsyncEngine, number: int) -> list[int]:
        stream: AsyncGenerator[Any, None] = engine.generate(PROMPTS[number], GREEDY, lora_request=adapter(folder, number))
        async with aclosing(stream) as outputs:
            return [list(output.outputs[0].token_ids) async for output in outputs][-1]

    async def run(engine: AsyncEngine) -> None:
        assert await asyncio.gather(*(one(engine, number) for number in range(9))) == expected
        with pytest.raises(ValueError, match="is no folder here"):
            await engine.add_lora(LoRARequest("none", 99, str(folder / "none")))
        first = adapter(folder, 1)
        assert first is not None and await engine.add_lora(first) and await engine.pin_lora(1)
        assert 1 in await engine.list_loras()
        assert await engine.remove_lora(1)
        assert 1 not in await engine.list_loras()

    engine = AsyncEngine(config(folder, parallel=ParallelConfig(dp=dp)))
    try:
        asyncio.run(run(engine))
    finally:
        engine.shutdown()


def test_models_that_take_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"executor.kind=simulated does not read it"):
        EngineConfig(executor=ExecutorConfig("simulated"), lora=LoraConfig(True)).validate()
