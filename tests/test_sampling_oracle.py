"""Every sampling parameter, alone and mixed with the others, in seats that requests leave to their successors: each token of the
engine is the one that a float64 sampler of the tests' own chooses from the logits of transformers after the same tokens."""

from __future__ import annotations

import random
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.outputs import CompletionOutput

from .float64_sampler import FAILED, choose, scores_of
from .framework.engines import finish
from .transformers_oracle import ERROR, TINY, Library, assert_logprobs

EOS = 1
MAX_TOKENS = 20
WORDS = ["self", "return", "not in", "self.", "if not", "None", "def __init__", "import", ", ", "():", "('"]


@dataclass(frozen=True)
class Job:
    """A request; ``field`` is what it is about, or "mixed"."""

    field: str
    prompt: list[int]
    params: SamplingParams


@cache
def library() -> Library:
    return Library(TINY)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@cache
def text() -> list[int]:
    """Tokens of source code, as the model knows it."""
    return tokenizer()((Path(sysconfig.get_path("stdlib")) / "fileinput.py").read_text(encoding="utf-8")).input_ids[1:]


def common(rng: random.Random, most: int) -> list[int]:
    """Some of the tokens that the model likes to generate: what is said about others is seldom heard."""
    tokens = [token for token, _ in Counter(text()).most_common(48)]
    return rng.sample(tokens, rng.randint(1, most))


def stops(rng: random.Random) -> dict[str, Any]:
    return {"stop_token_ids": common(rng, 40)}


FIELDS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "temperature": lambda rng: {"temperature": rng.choice([0.0, 0.001, 0.3, 0.8, 1.5, 2.0])},
    "top_k": lambda rng: {"top_k": rng.choice([-1, 1, 2, 5, 40])},
    "top_p": lambda rng: {"top_p": rng.choice([0.1, 0.5, 0.9])},
    "min_p": lambda rng: {"min_p": rng.choice([0.02, 0.1, 0.4, 1.0])},
    "repetition_penalty": lambda rng: {"repetition_penalty": rng.choice([0.5, 0.8, 1.3, 2.5])},
    "frequency_penalty": lambda rng: {"frequency_penalty": rng.choice([-1.5, 0.7, 2.0])},
    "presence_penalty": lambda rng: {"presence_penalty": rng.choice([-1.5, 0.7, 2.0])},
    "logit_bias": lambda rng: {"logit_bias": {token: rng.choice([-100, -4, 1.5, 4]) for token in common(rng, 20)}},
    "allowed_token_ids": lambda rng: {"allowed_token_ids": common(rng, 30)},
    "bad_words": lambda rng: {"bad_words": rng.sample(WORDS, rng.randint(1, 5)), "temperature": rng.choice([0.0, 0.5])},
    "stop_token_ids": stops,
    "min_tokens": lambda rng: {**stops(rng), "min_tokens": rng.randint(1, MAX_TOKENS // 2)},
    "ignore_eos": lambda rng: {"ignore_eos": rng.random() < 0.7, "logit_bias": {EOS: 6.0}, "min_tokens": rng.randint(0, 5)},
    "seed": lambda rng: {"seed": rng.choice([0, -7, 2**31 + 5, 2**32 + 5, 2**63 + 5, 2**64 - 1])},
    "n": lambda rng: {"n": rng.randint(2, 3)},
    "logprobs": lambda rng: {"logprobs": rng.choice([-1, 0, 1, 5])},
    "prompt_logprobs": lambda rng: {"prompt_logprobs": rng.choice([0, 4]), "skip_reading_prefix_cache": rng.choice([None, False])},
    "max_tokens": lambda rng: {"max_tokens": rng.randint(1, 5)},
}
TOGETHER = [{"allowed_token_ids", "min_tokens"}, {"allowed_token_ids", "bad_words"}, {"min_p", "top_k", "top_p"}, {"n", "logprobs"}]
EXCLUSIVE = {"ignore_eos", "bad_words"}
"""Seldom in mixtures: they would bias and mask the same tokens."""


def make_params(rng: random.Random, fields: set[str]) -> SamplingParams:
    given: dict[str, Any] = {"seed": rng.randrange(2**62), "max_tokens": rng.randint(8, MAX_TOKENS)}
    for name in FIELDS:
        if name in fields:
            given |= FIELDS[name](rng)
    if given.get("temperature") == 0:
        given.pop("n", None)
    return SamplingParams(**given | {"min_tokens": min(given.get("min_tokens", 0), given["max_tokens"])})


def make_jobs(seed: int, num_alone: int, num_mixed: int) -> list[Job]:
    """Prompts begin anywhere in the text, some where others begin, and may be longer than a step's budget."""
    rng = random.Random(seed)
    fields = [(name, {name}) for name in FIELDS for _ in range(num_alone)]
    fields += [(" and ".join(sorted(names)), names) for names in TOGETHER for _ in range(num_alone)]
    mixable = sorted(FIELDS.keys() - EXCLUSIVE)
    fields += [("mixed", set(rng.sample(mixable, rng.randint(2, 8)))) for _ in range(num_mixed)]
    rng.shuffle(fields)
    starts = [rng.randrange(2000) for _ in range(12)]
    jobs = []
    for name, names in fields:
        start, length = rng.choice(starts), rng.choice([1, 5, 12, 30, 70])
        prompt, after = text()[start : start + length], text()[start + length]
        params = make_params(rng, names)
        if params.bad_words and (word := tokenizer().decode([prompt[-1], after])).strip():
            params.bad_words.append(word)  # begins in the prompt, so that its end may be generated
        jobs.append(Job(name, prompt, params))
    return jobs


def build(num_blocks: int, in_flight_steps: int) -> Engine:
    """Three seats for all."""
    return build_engine(
        EngineConfig(
            ModelConfig(str(TINY), dtype="float32", max_logprobs=-1),
            CacheConfig(block_size=4, num_blocks=num_blocks),
            SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=24, in_flight_steps=in_flight_steps),
            num_threads=1,
        )
    )


@pytest.mark.parametrize(
    ("seed", "num_blocks", "in_flight_steps"), [(0, 200, 1), (1, 24, 1), (2, 24, 2)], ids=["roomy", "preempted", "in flight"]
)
def test_every_token_is_the_one_of_the_float64_sampler(seed: int, num_blocks: int, in_flight_steps: int) -> None:
    engine = build(num_blocks, in_flight_steps)
    jobs = make_jobs(seed, num_alone=2, num_mixed=36)
    num_ties = sum(check(engine, jobs[start : start + 30]) for start in range(0, len(jobs), 30))
    stats = engine.stats()
    assert num_ties <= 0.02 * stats.num_output_tokens
    assert stats.num_chunked_prefills > 10 and stats.prefix_hit_tokens > 100 and stats.num_forks > 0
    assert (stats.num_preemptions > 5) == (num_blocks < 100)


@pytest.mark.parametrize("in_flight_steps", [1, 2])
def test_what_was_generated_before_a_preemption_counts_after_it(in_flight_steps: int) -> None:
    engine = build(num_blocks=26, in_flight_steps=in_flight_steps)
    penalties: list[dict[str, Any]] = [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 2.5}]
    jobs = [
        Job(str(given), text()[start : start + 20], SamplingParams(temperature=0, seed=0, max_tokens=50, ignore_eos=True, **given))
        for start in (0, 500)
        for given in penalties
    ]
    assert check(engine, jobs) <= 0.02 * engine.stats().num_output_tokens
    assert engine.stats().num_preemptions > 2


def check(engine: Engine, jobs: list[Job]) -> int:
    """Runs them. How many tokens were near-ties with those of the float64 sampler."""
    for index, job in enumerate(jobs):
        engine.add_request(str(index), job.prompt, job.params)
    done = finish(engine)
    completed = [(job, done[str(index)], c) for index, job in enumerate(jobs) for c in done[str(index)].outputs]
    all_logits = library().logits([job.prompt + completion.token_ids for job, _, completion in completed])
    num_ties = 0
    for (job, output, completion), logits in zip(completed, all_logits):
        before, after = np.split(logits, [len(job.prompt) - 1])
        num_ties += check_tokens(job, completion, after)
        check_logprobs(job, completion, after[:-1])
        check_end(job.params, completion)
        if job.params.prompt_logprobs is not None:
            assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
            entries = [entry for entry in output.prompt_logprobs[1:] if entry is not None]
            assert_logprobs(entries, before, job.prompt[1:], job.params.prompt_logprobs)
    return num_ties


def check_tokens(job: Job, completion: CompletionOutput, logits: np.ndarray) -> int:
    """logits [tokens + 1, V] that each token, and the one after the last, comes from. How many tokens were near-ties."""
    params, output = job.params, completion.token_ids
    assert params.seed is not None
    words = [
        tokenizer().encode(text, add_special_tokens=False)
        for word in params.bad_words or ()
        for text in (word, " " + word.lstrip())
    ]
    num_ties = 0
    for i, token in enumerate([*output, FAILED] if completion.finish_reason == "error" else output):
        scores = scores_of(logits[i], params, job.prompt, output[:i], [EOS, *(params.stop_token_ids or ())], words)
        choice = choose(scores, params, params.seed + completion.index, len(job.prompt) + i, ERROR)
        assert token == choice.token or token in choice.possible, f"{job.field}: token {i} of {params}"
        num_ties += token != choice.token
    return num_ties


def check_logprobs(job: Job, completion: CompletionOutput, logits: np.ndarray) -> None:
    """logits [tokens, V], raw."""
    if job.params.logprobs is None:
        assert completion.logprobs is None
        return
    assert completion.logprobs is not None
    assert_logprobs(completion.logprobs, logits, completion.token_ids, job.params.logprobs)
    total = sum(entry[token].logprob for entry, token in zip(completion.logprobs, completion.token_ids))
    assert completion.cumulative_logprob == pytest.approx(total)


def check_end(params: SamplingParams, completion: CompletionOutput) -> None:
    """A stop token ends the request, and nothing goes on after it."""
    stop_ids = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else (EOS,))}
    found = [i for i, token in enumerate(completion.token_ids) if i >= params.min_tokens and token in stop_ids]
    if found:
        assert found == [len(completion.token_ids) - 1] and completion.finish_reason == "stop"
        last = completion.token_ids[-1]
        assert completion.stop_reason == (None if last == EOS else last)
    elif completion.finish_reason != "error":
        assert len(completion.token_ids) == params.max_tokens and completion.finish_reason == "length"
