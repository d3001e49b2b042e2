"""Long requests through the engine, against the transformers library on the same folder: tokens, log-probabilities and text of
prompts computed in chunks, shared by the prefix cache, batched, preempted, with steps in flight."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.outputs import RequestOutput
from framework.speculation.config import SpeculativeConfig

from .framework.engines import finish
from .framework.models.checkpoints import EXAMPLES, make
from .speculating import METHODS
from .transformers_oracle import ERROR, TINY, Library, assert_logprobs

NUM_PROMPT, NUM_OUTPUT = 300, 150
BLOCK = 16


@dataclass(frozen=True)
class Subject:
    """A model's folder, prompts for it, and how many blocks their requests hold together in the end."""

    folder: Path
    library: Library
    prompts: list[list[int]]
    num_blocks: int


@pytest.fixture(scope="module")
def tiny() -> Subject:
    """The embedded model, on source code."""
    source = Path(sysconfig.get_path("stdlib"))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = [(source / name).read_text(encoding="utf-8") for name in ("json/decoder.py", "fileinput.py", "unittest/suite.py")]
    return Subject(TINY, Library(TINY), _sharing_a_start([tokenizer(text).input_ids for text in texts]), 4 * 29)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Random weights; layers that see 40 tokens beside one that sees all, so that the cache has two block tables."""
    folder = tmp_path_factory.mktemp("windowed")
    example = EXAMPLES["gemma3"]
    make(replace(example, config={**example.config, "max_position_embeddings": 512, "sliding_window": 40}), folder)
    rng = random.Random(0)
    return Subject(
        folder, Library(folder), _sharing_a_start([rng.choices(range(3, 211), k=2000) for _ in range(3)]), 4 * (29 + 2 * 4)
    )


def _sharing_a_start(texts: Sequence[list[int]]) -> list[list[int]]:
    """Prompts of about NUM_PROMPT tokens: the first text, one that leaves it after 200 tokens, the other texts."""
    return [texts[0][:NUM_PROMPT], texts[0][:200] + texts[1][500:600], *(text[: NUM_PROMPT + 7] for text in texts[1:])]


def build(subject: Subject, num_blocks: int, in_flight_steps: int, speculative: dict[str, Any] | None = None) -> Engine:
    return build_engine(
        EngineConfig(
            ModelConfig(str(subject.folder), tokenizer="tiny", dtype="float32"),
            CacheConfig(BLOCK, num_blocks, check_invariants=True),
            SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, in_flight_steps=in_flight_steps),
            num_threads=1,
            speculative_config=SpeculativeConfig.of(speculative or {}),
        )
    )


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    done = finish(engine)
    return [done[str(index)] for index in range(len(prompts))]


@pytest.mark.parametrize(("in_flight_steps", "room"), [(1, 1.2), (2, 0.85)], ids=["roomy", "preempted"])
@pytest.mark.parametrize("name", ["tiny", "windowed"])
def test_long_requests_are_those_of_transformers(
    name: str, in_flight_steps: int, room: float, request: pytest.FixtureRequest
) -> None:
    subject: Subject = request.getfixturevalue(name)
    engine = build(subject, 1 + int(room * subject.num_blocks), in_flight_steps)
    params = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True, logprobs=2)
    outputs = run(engine, subject.prompts, params)
    stats = engine.stats()
    assert stats.num_chunked_prefills > 0 and stats.prefix_hit_tokens > 0
    assert (stats.num_preemptions > 0) == (room < 1)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    whole = subject.library.logits([p + output.outputs[0].token_ids for p, output in zip(subject.prompts, outputs)])
    num_ties = 0
    for prompt, output, rows in zip(subject.prompts, outputs, whole):
        completion, logits = output.outputs[0], rows[len(prompt) - 1 : -1]
        assert len(completion.token_ids) == NUM_OUTPUT and completion.finish_reason == "length"
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        num_ties += _near_ties(completion.token_ids, logits)
        assert completion.logprobs is not None
        assert_logprobs(completion.logprobs, logits, completion.token_ids, 2)
    assert num_ties <= 0.02 * NUM_OUTPUT * len(outputs)


@pytest.mark.parametrize(
    ("name", "method"), [("tiny", "suffix"), ("tiny", "mtp"), ("tiny", "eagle3"), ("tiny", "medusa"), ("windowed", "itself")]
)
def test_speculation_gives_the_tokens_of_transformers(name: str, method: str, request: pytest.FixtureRequest) -> None:
    subject: Subject = request.getfixturevalue(name)
    itself = {"method": "draft_model", "model": str(subject.folder)}
    num_output = 60
    engine = build(subject, 1 + int(0.5 * subject.num_blocks), 2, {**METHODS.get(method, itself), "num_speculative_tokens": 3})
    params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True, detokenize=False)
    outputs = run(engine, subject.prompts, params)
    whole = subject.library.logits([p + output.outputs[0].token_ids for p, output in zip(subject.prompts, outputs)])
    stats, num_ties = engine.stats(), 0
    for prompt, output, rows in zip(subject.prompts, outputs, whole):
        assert len(output.outputs[0].token_ids) == num_output
        num_ties += _near_ties(output.outputs[0].token_ids, rows[len(prompt) - 1 : -1])
    assert num_ties <= 0.02 * num_output * len(outputs)
    assert stats.num_chunked_prefills > 0 and sum(stats.drafts.accepted) > 0


@pytest.mark.parametrize("name", ["tiny", "windowed"])
def test_prompt_logprobs_of_long_prompts_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    subject: Subject = request.getfixturevalue(name)
    engine = build(subject, 1 + subject.num_blocks, in_flight_steps=2)
    outputs = run(engine, subject.prompts, SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1))
    assert engine.stats().num_chunked_prefills > 0
    for prompt, output, logits in zip(subject.prompts, outputs, subject.library.logits(subject.prompts)):
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        entries = [entry for entry in output.prompt_logprobs[1:] if entry is not None]
        assert_logprobs(entries, logits[:-1], prompt[1:], 1)


def _near_ties(token_ids: list[int], logits: np.ndarray) -> int:
    """How many tokens are not the best of logits [n, V]; all of them must be as good as equal to it."""
    lost = logits.max(axis=1) - logits[np.arange(len(token_ids)), token_ids]
    assert lost.max() < 2 * ERROR, f"token {int(lost.argmax())} of the output is not the one that transformers gives"
    return int((lost > 0).sum())
