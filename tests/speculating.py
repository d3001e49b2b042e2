"""Requests of every kind, served with and without drafts: what comes out must be the same."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.kv_cache.prefix import ExtraKeys
from framework.outputs import CompletionOutput, RequestOutput
from framework.speculation.config import SpeculativeConfig

from .framework.engines import run

Job = tuple[list[int], SamplingParams]
SHARED_PREFIX = random.Random(0).choices(range(300, 2000), k=40)
METHODS: dict[str, dict[str, Any]] = {
    "oracle": {"method": "tests.speculating:Oracle"},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3},
    "suffix": {"method": "suffix", "suffix_decoding_min_token_prob": 0.0},
    "forced": {"method": "forced"},
    "draft_model": {"method": "draft_model", "model": "tiny-draft"},
    "mtp": {"method": "mtp", "model": "tiny-mtp"},
    "eagle3": {"method": "eagle3", "model": "tiny-eagle3"},
    "medusa": {"method": "medusa", "model": "tiny-medusa"},
}


FORMS: list[dict[str, Any]] = [
    {"regex": "[a-z ]{3,18}[0-9]{2}"},
    {"json": {"type": "object", "properties": {"b": {"enum": ["x", "y"]}}, "required": ["b"], "additionalProperties": False}},
]


class Oracle:
    """Knows what comes, and says so most of the time: so that any number of drafts is accepted, and any is rejected.

    comes  prompt and output of each request, by its id
    """

    comes: ClassVar[dict[str, list[int]]] = {}

    def __init__(self, config: SpeculativeConfig) -> None:
        self._random = random.Random(0)

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys) -> None: ...

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        count = self._random.randrange(most + 1)
        drafts = self.comes[request_id][len(token_ids) :][:count]
        drafts += self._random.choices(range(300, 2000), k=count - len(drafts))
        if drafts and self._random.random() < 0.5:
            drafts[self._random.randrange(count)] = self._random.randrange(300, 2000)
        return drafts

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None: ...


class Prophet(Oracle):
    """An oracle that is always right, and says all that it may."""

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        return self.comes[request_id][len(token_ids) :][:most]


class Broken(Oracle):
    """Fails whatever it is asked, or proposes what is no token, or too many."""

    def start(self, request_id: str, prompt_token_ids: Sequence[int], extra_keys: ExtraKeys) -> None:
        raise RuntimeError("no beginning")

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        if len(token_ids) % 5 == 0:
            raise RuntimeError("no idea")
        return ([99999], [-1], [5] * (most + 1), [5.5])[len(token_ids) % 5 - 1]  # type: ignore[return-value]

    def stop(self, request_id: str, token_ids: Sequence[int] = ()) -> None:
        raise RuntimeError("no end")


def make_engine(
    speculative: dict[str, Any] | None = None,
    cache: CacheConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    kernels: str = "reference",
    model: ModelConfig | None = None,
) -> Engine:
    cache = cache or CacheConfig(num_blocks=200, prefix_caching=False)
    cache.check_invariants = True
    model = model or ModelConfig("tiny", dtype="float32", max_model_len=160)
    config = EngineConfig(model, cache, scheduler or SchedulerConfig(max_num_seqs=4), num_threads=1)
    config.kernels = {"default": kernels}
    config.speculative_config = SpeculativeConfig.of(speculative or {})
    return build_engine(config)


def some_jobs(rng: random.Random, count: int = 5, has_text: bool = True) -> list[Job]:
    """Prompts that share a prefix and repeat themselves, with parameters of all kinds. has_text: of a model with a tokenizer."""
    jobs = []
    for _ in range(count):
        own = rng.choices(range(300, 2000), k=rng.randrange(1, 12))
        prompt = SHARED_PREFIX[: rng.randrange(1, 40)] + own * rng.choice([1, 1, 3])
        max_tokens, temperature = rng.randrange(1, 24), rng.choice([0.0, 0.7, 1.2])
        params = SamplingParams(
            n=rng.choice([1, 1, 2]) if temperature else 1,
            temperature=temperature,
            seed=rng.randrange(2**40),
            max_tokens=max_tokens,
            min_tokens=min(rng.choice([0, 0, 6]), max_tokens),
            ignore_eos=rng.random() < 0.5,
            top_k=rng.choice([0, 0, 20]),
            top_p=rng.choice([1.0, 1.0, 0.9]),
            min_p=rng.choice([0.0, 0.0, 0.02]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
            presence_penalty=rng.choice([0.0, 0.0, 0.4]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            logit_bias=rng.choice([None, {500: 4.0}]),
            bad_words=rng.choice([None, None, ["self", "def f", " import os"]]),
            stop=rng.choice([None, None, [")", "\n\n"]]),
            stop_token_ids=rng.choice([None, rng.choices(range(2000), k=40)]),
            include_stop_str_in_output=rng.random() < 0.5,
            logprobs=rng.choice([None, None, 0, 2]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
            structured_outputs=rng.choice([None, None, None, *FORMS]),
        )
        text = {} if has_text else {"bad_words": None, "stop": None, "structured_outputs": None}
        jobs.append((prompt, replace(params, **text)))
    return jobs


def check_equal(found: list[RequestOutput], expected: list[RequestOutput]) -> None:
    """Everything that a request tells, but for times and what was cached; log-probabilities to the error of float32 sums."""
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.error == b.error, f"request {index}"
        _check_logprobs(a.prompt_logprobs, b.prompt_logprobs)
        if a.error is not None and len(a.outputs) > 1:  # one of them ended all, however far the others were
            for one, other in zip(a.outputs, b.outputs, strict=True):
                assert all(map(operator.eq, one.token_ids, other.token_ids)), f"request {index}"
            continue
        assert [_told(one) for one in a.outputs] == [_told(one) for one in b.outputs], f"request {index}"
        for one, other in zip(a.outputs, b.outputs):
            _check_logprobs(one.logprobs, other.logprobs)


def _told(output: CompletionOutput) -> tuple[Any, ...]:
    return output.token_ids, output.text, output.finish_reason, output.stop_reason


def _check_logprobs(found: Any, expected: Any) -> None:
    assert (found is None) == (expected is None)
    for position, other in zip(found or (), expected or (), strict=True):
        assert (position is None) == (other is None)
        assert list(position or ()) == list(other or ())
        for token, logprob in (position or {}).items():
            assert logprob.rank == other[token].rank and abs(logprob.logprob - other[token].logprob) < 1e-4


def comes(jobs: list[Job], outputs: list[RequestOutput]) -> dict[str, list[int]]:
    """Prompt and output of each completion, by the id that its request has in the engine."""
    found = {}
    for index, ((prompt, _), output) in enumerate(zip(jobs, outputs)):
        for i, completion in enumerate(output.outputs):
            found[f"{i}_{index}"] = [*prompt, *completion.token_ids]
    return found


def check_mix(seed: int, plain: Engine, model: ModelConfig | None = None, shares: bool = True) -> dict[str, Any]:
    """Requests of one seed, served in one of all ways; ``plain`` serves each by itself, without drafts. Returns what happened.
    model: one that describes itself, and has neither tokenizer nor drafting heads; None: the tiny one. shares: whether prefixes can
    be shared, and drafts taken back; where layers keep states, prefixes are whose states are kept, and drafts never."""
    rng = random.Random(seed)
    jobs = some_jobs(rng, has_text=model is None)
    expected = run(plain, jobs, together=False)
    Oracle.comes = comes(jobs, expected)
    method, k = rng.choice(list(METHODS) if model is None else ["oracle", "ngram", "suffix"]), rng.choice([1, 3, 7])
    k = min(k, 4) if method == "medusa" else k  # so many heads
    size = rng.choice([2, 5, 16])
    longest = max(len(prompt) + (params.max_tokens or 0) for prompt, params in jobs)  # at the latest: so much must fit
    cache = CacheConfig(size, num_blocks=-(-longest // size) + 2 + rng.randrange(40), prefix_caching=rng.random() < 0.5)
    cache.prefix_caching = cache.prefix_caching if shares else None
    budget, in_flight = rng.choice([5, 17, 64]), rng.choice([1, 2])
    scheduler = SchedulerConfig(max_num_seqs=rng.randrange(1, 9), max_num_batched_tokens=budget, in_flight_steps=in_flight)
    cache.state_snapshots = 0 if shares else rng.choice([0, 1, 5])
    drafting = {**METHODS[method], "num_speculative_tokens": k} if shares else None
    engine = make_engine(drafting, cache, scheduler, model=model)
    check_equal(run(engine, jobs), expected)
    assert engine.manager.pool.num_free == engine.manager.pool.num_blocks - 1
    stats = engine.stats()
    accepted = sum(stats.drafts.accepted)
    return {
        "method": method,
        "drafts": sum(stats.drafts.drafts),
        "accepted": accepted,
        "rejected": sum(stats.drafts.drafts) - accepted,
        "preemptions": stats.num_preemptions,
        "prefix hits": stats.prefix_hit_tokens,
        "chunks": stats.num_chunked_prefills,
        "forks": stats.num_forks,
    }
