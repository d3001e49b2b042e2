"""Beam search against one that is written here, over the logits of the transformers library in float32."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from framework import LLM, AsyncEngine, BeamSearchParams, EngineConfig, SamplingParams
from framework.beam_search import BeamSearch, BeamSearchOutput, search_beams
from framework.config import CacheConfig, ModelConfig
from framework.engine.prompts import EngineInput
from framework.outputs import CompletionOutput, Logprob, RequestOutput

TINY = Path(__file__).parents[2] / "framework" / "assets" / "tiny"
PROMPTS = ["def read_file(path):\n", "import os\n"]
STEPS = 12


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", num_gpu_blocks_override=1024, block_size=4)


@pytest.fixture(scope="module")
def library() -> Iterator[torch.nn.Module]:
    yield AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def search(library: torch.nn.Module, prompt: list[int], width: int, steps: int, ends: set[int], penalty: float) -> list[tuple]:
    """The whole table of candidates in each step: [(score, tokens)], best first; an end belongs to no tokens."""
    live, ended = [(0.0, prompt)], []
    for _ in range(steps):
        rows = library(torch.tensor([tokens for _, tokens in live])).logits[:, -1].float().log_softmax(-1).double()
        table = torch.tensor([total for total, _ in live], dtype=torch.float64)[:, None] + rows
        near = rows >= rows.topk(2 * width).values[:, -1:]  # no beam offers more than 2 * width tokens
        candidates = []
        for beam, token in near.nonzero().tolist():
            total = table[beam, token].item()
            if token in ends:
                ended.append((total, live[beam][1]))
            else:
                candidates.append((total, [*live[beam][1], token]))
        live = sorted(candidates, key=lambda item: -item[0])[:width]
    scored = [(total / len(tokens) ** penalty, tokens) for total, tokens in ended + live]
    return sorted(scored, key=lambda item: -item[0])[:width]


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
def test_tokens_and_scores_are_those_of_an_independent_search(
    llm: LLM, library: torch.nn.Module, width: int, penalty: float
) -> None:
    tokenizer = llm.get_tokenizer()
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    llm.engine.inputs.eos_token_ids = frozenset({newline})  # one that comes soon: tiny's own is rare
    outputs = llm.beam_search(PROMPTS, BeamSearchParams(width, STEPS, length_penalty=penalty))
    for prompt, output in zip(PROMPTS, outputs):
        expected = search(library, tokenizer.encode(prompt), width, STEPS, {newline}, penalty)
        assert len(output.sequences) == width
        for found, (score, tokens) in zip(output.sequences, expected):
            assert found.tokens == tokens
            assert found.cum_logprob / len(tokens) ** penalty == pytest.approx(score, abs=1e-4)
            assert found.text == tokenizer.decode(tokens)
            assert found.finish_reason == ("length" if len(tokens) == len(tokenizer.encode(prompt)) + STEPS else "stop")


def test_a_step_of_all_beams_is_one_step_of_the_engine_and_common_prefixes_share_blocks(llm: LLM) -> None:
    """Of the tokens that a beam brings along, all full blocks but the last are found in the cache."""
    llm.engine.inputs.eos_token_ids = frozenset()
    assert llm.reset_prefix_cache()
    prompt = list(range(40, 80))
    before, steps = llm.engine.stats(), []
    step = llm.engine.step
    llm.engine.step = lambda: (steps.append(llm.engine.num_waiting), step())[1]  # type: ignore[method-assign]
    try:
        llm.beam_search([prompt], BeamSearchParams(4, STEPS))
    finally:
        llm.engine.step = step  # type: ignore[method-assign]
    assert steps == [1, *[4] * (STEPS - 1)]
    after = llm.engine.stats()
    queried = after.prefix_query_tokens - before.prefix_query_tokens
    assert queried == 40 + 4 * sum(40 + i for i in range(1, STEPS))
    computed = queried - (after.prefix_hit_tokens - before.prefix_hit_tokens)
    # A beam computes at most the tokens of its last, incomplete block, and a block that was completed by its last token alone.
    assert computed <= 40 + 4 * (STEPS - 1) * 5
    assert llm.engine.manager.pool.usage == 0


def test_the_width_is_bounded_by_what_the_engine_tells_of_a_token(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"logprobs=22 is more than the 20.*max_logprobs"):
        llm.beam_search(PROMPTS, BeamSearchParams(11, 2))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"beam_width": 0}, "beam_width=0"), ({"max_tokens": -1}, "max_tokens=-1"), ({"length_penalty": float("nan")}, "length_pen")],
)
def test_wrong_parameters_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 2, **wrong})  # type: ignore[arg-type]


def test_beams_end_at_the_models_length(llm: LLM) -> None:
    length = llm.engine.info().max_model_len
    [output] = llm.beam_search([[50] * (length - 2)], BeamSearchParams(2, 10, ignore_eos=True))
    assert [len(sequence.tokens) for sequence in output.sequences] == [length, length]
    with pytest.raises(ValueError, match="prompt"):
        llm.beam_search([[50] * (length + 1)], BeamSearchParams(2, 10))


@pytest.mark.parametrize("penalty", [-100, 100])
def test_penalties_of_long_sequences_are_more_than_a_float_holds(penalty: float) -> None:
    """1500 to the power of 100 is 4e317. The order is that of scores all the same."""
    search = BeamSearch(EngineInput([1] * 1500), BeamSearchParams(2, 3, length_penalty=penalty), [0], 2048)
    while search.beams:
        search.advance([{0: Logprob(-1.0, 1), 5: Logprob(-0.01, 2)} for _ in search.beams])
    lengths = [len(sequence.tokens) for sequence in search.best().sequences]
    assert lengths == [1503, 1500 if penalty < 0 else 1502]


def test_every_step_has_the_priority_and_the_salt_of_its_request() -> None:
    asked: list[tuple[str | None, int]] = []

    class Stub:
        inputs = SimpleNamespace(eos_token_ids=(), tokenizer=None, check_beams=lambda: None)
        info = SimpleNamespace(max_model_len=100)

        async def generate(
            self, prompt: EngineInput, params: SamplingParams, *, lora_request: None, priority: int
        ) -> AsyncIterator[RequestOutput]:
            asked.append((prompt.cache_salt, priority))
            logprobs = [{token: Logprob(-1.0, token) for token in range(1, 5)}]
            yield RequestOutput("", None, prompt.token_ids, None, [CompletionOutput(0, "", [1], -1.0, logprobs, "length")], True)

    asyncio.run(search_beams(cast(AsyncEngine, Stub()), EngineInput([7], cache_salt="mine"), BeamSearchParams(2, 3), 5))
    assert asked == [("mine", 5)] * 5


def test_the_end_of_sequence_is_kept_where_it_is_asked_for(llm: LLM) -> None:
    newline = llm.get_tokenizer().encode("\n", add_special_tokens=False)[-1]
    llm.engine.inputs.eos_token_ids = frozenset({newline})
    without, with_end = (
        llm.beam_search(PROMPTS[0], BeamSearchParams(4, STEPS, include_stop_str_in_output=asked))[0].sequences
        for asked in (False, True)
    )
    for short, long in zip(without, with_end):
        assert long.tokens == short.tokens + [newline] * (short.finish_reason == "stop")
        assert long.cum_logprob == short.cum_logprob and len(long.logprobs) == len(short.logprobs)


def test_the_engine_for_servers_finds_the_same(llm: LLM) -> None:
    params = BeamSearchParams(4, STEPS)
    engine = AsyncEngine(
        EngineConfig(ModelConfig("tiny", dtype="float32"), CacheConfig(num_blocks=512, block_size=4), device="cpu")
    )
    try:

        async def both() -> list[BeamSearchOutput]:
            inputs = [engine.inputs.prompt(prompt) for prompt in PROMPTS]
            return await asyncio.gather(*(search_beams(engine, prompt, params) for prompt in inputs))

        async def too_wide() -> None:
            with pytest.raises(ValueError, match="logprobs=22"):
                await search_beams(engine, engine.inputs.prompt("x"), BeamSearchParams(11, 2))

        found = asyncio.run(both())
        asyncio.run(too_wide())
        llm.engine.inputs.eos_token_ids = engine.inputs.eos_token_ids
        for output, expected in zip(found, llm.beam_search(PROMPTS, params)):
            assert [s.tokens for s in output.sequences] == [s.tokens for s in expected.sequences]
            assert [s.text for s in output.sequences] == [s.text for s in expected.sequences]
    finally:
        engine.shutdown()
