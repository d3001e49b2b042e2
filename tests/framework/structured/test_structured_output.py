"""Requests with a constraint on the embedded model: tokens that follow it, whatever happens around them."""

from __future__ import annotations

import functools
import json
import math
import random
import re
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
import regex
import torch
import xgrammar
from transformers import AutoModelForCausalLM

from framework import LLM, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.outputs import RequestOutput
from framework.structured.backends.llguidance import LlguidanceBackend
from framework.structured.backends.xgrammar import XgrammarBackend
from framework.structured.config import StructuredOutputsConfig
from framework.structured.watched import MAX_STUCK, WatchedThread

from ...test_exactness import SHARED_PREFIX, Job
from ..engines import run, tokens
from .vocabularies import EOS, PIECES, TOKENIZER

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["small", "large"]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}
CONSTRAINTS: list[dict[str, Any] | None] = [
    None,
    {"json": SCHEMA, "disable_any_whitespace": True},
    {"regex": "[a-z]{2,8}-[0-9]{4,6}"},
    None,
    {"choice": ["alpha", "beta", "gamma delta"]},
    {"grammar": 'root ::= "(" root ")" | "x" | "y" root'},
]


def engine(
    backend: str = "auto", cache: CacheConfig | None = None, scheduler: SchedulerConfig | None = None, **more: Any
) -> Engine:
    cache = cache or CacheConfig(num_blocks=200, prefix_caching=False)
    cache.check_invariants = True
    config = EngineConfig(
        ModelConfig("tiny", dtype="float32", max_model_len=160, max_logprobs=-1),
        cache,
        scheduler or SchedulerConfig(max_num_seqs=16),
        structured_outputs=StructuredOutputsConfig(backend, **more),
        kernels={"default": "reference"},
        num_threads=1,
    )
    return build_engine(config)


@functools.cache
def shared_engine() -> Engine:
    return engine()


def params(constraint: dict[str, Any] | None, **given: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, "seed": 7, "structured_outputs": constraint, **given})  # type: ignore[arg-type]


def some_jobs(count: int) -> list[Job]:
    rng = random.Random(1)
    jobs = []
    for index in range(count):
        prompt = SHARED_PREFIX[: rng.randrange(1, 40)] + tuple(rng.choices(range(300, 2000), k=rng.randrange(1, 20)))
        temperature = rng.choice([0.0, 0.7, 1.2])
        given = {"temperature": temperature, "seed": index, "n": 3 if temperature and index % 4 == 1 else 1}
        jobs.append((prompt, params(CONSTRAINTS[index % len(CONSTRAINTS)], **given)))
    return jobs


def assert_idle(running: Engine) -> None:
    assert running._matchers is not None and not running._matchers._active and not running._matchers._jobs
    assert not any(job.num_waiting for job in running._matchers.compiler._jobs.values())
    assert running.manager.pool.num_free == running.executor.num_blocks - 1 and not running.has_unfinished()


def follows(constraint: dict[str, Any] | None, text: str) -> bool:
    if constraint is None:
        return True
    if "json" in constraint:
        return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))
    if "grammar" in constraint:
        inner = re.fullmatch(r"[(y]*x\)*", text)
        return bool(inner) and text.count("(") == text.count(")")
    return text in constraint["choice"] if "choice" in constraint else bool(re.fullmatch(constraint["regex"], text))


@functools.cache
def expected(count: int) -> list[list[list[int]]]:
    """Each request by itself, its prompt whole, one step in flight."""
    jobs = some_jobs(count)
    outputs = run(shared_engine(), jobs, together=False)
    stopped = 0
    for (_, given), output in zip(jobs, outputs):
        constraint = CONSTRAINTS[jobs.index((_, given)) % len(CONSTRAINTS)]
        for completion in output.outputs:
            if completion.finish_reason == "stop" and constraint is not None:
                assert follows(constraint, completion.text), (constraint, completion.text)
                stopped += 1
    assert stopped > count / 2, "most end by themselves"
    return tokens(outputs)


@pytest.mark.parametrize(
    "cache, scheduler",
    [
        ({}, {"max_num_seqs": 16}),
        ({}, {"in_flight_steps": 2}),
        ({}, {"in_flight_steps": 3, "max_num_seqs": 5}),
        ({}, {"max_num_batched_tokens": 24, "max_num_seqs": 8}),
        ({"prefix_caching": True}, {"max_chunk_tokens": 7, "in_flight_steps": 2}),
        ({"num_blocks": 14}, {"max_num_seqs": 8}),
        ({"num_blocks": 14}, {"max_num_seqs": 8, "in_flight_steps": 2}),
        ({"num_blocks": 14, "prefix_caching": True}, {"max_num_seqs": 8, "in_flight_steps": 3, "max_num_batched_tokens": 40}),
    ],
)
def test_tokens_do_not_depend_on_what_happens_around(cache: dict[str, Any], scheduler: dict[str, Any]) -> None:
    running = engine(
        cache=CacheConfig(**{"num_blocks": 200, "prefix_caching": False, "block_size": 16, **cache}),
        scheduler=SchedulerConfig(**{"max_num_seqs": 16, **scheduler}),
    )
    assert tokens(run(running, some_jobs(18))) == expected(18)
    assert running.stats().num_preemptions > 0 or "num_blocks" not in cache
    assert_idle(running)


@pytest.mark.parametrize("in_flight_steps", [1, 2])
@pytest.mark.parametrize("short_s", [0.0, math.inf])
def test_tokens_do_not_depend_on_which_thread_fills_masks(
    monkeypatch: pytest.MonkeyPatch, in_flight_steps: int, short_s: float
) -> None:
    """A library that is not bounded has a thread of its own whatever its masks took."""
    monkeypatch.setattr("framework.structured.matchers.SHORT_FILL_S", short_s)
    here: Counter[tuple[str, bool]] = Counter()
    for library in (LlguidanceBackend, XgrammarBackend):

        def fill(backend: Any, matchers: Any, drafts: Any, masks: Any, is_short: bool, inner: Any = library.fill) -> None:
            here[type(backend).__name__, threading.current_thread() is threading.main_thread()] += 1
            inner(backend, matchers, drafts, masks, is_short)

        monkeypatch.setattr(library, "fill", fill)
    running = engine(
        cache=CacheConfig(num_blocks=200, prefix_caching=False, block_size=16),
        scheduler=SchedulerConfig(max_num_seqs=16, in_flight_steps=in_flight_steps),
    )
    assert tokens(run(running, some_jobs(18))) == expected(18)
    assert bool(here["LlguidanceBackend", True]) == (short_s > 0) and not here["XgrammarBackend", True]
    assert_idle(running)


@pytest.mark.parametrize("in_flight_steps", [1, 2])
def test_rows_without_a_constraint_are_unchanged(in_flight_steps: int) -> None:
    """Tokens, and log-probabilities bit by bit, of a batch with and without constrained rows; in the model's own bfloat16."""
    scheduler = SchedulerConfig(in_flight_steps=in_flight_steps)
    llm = LLM(EngineConfig(cache=CacheConfig(num_blocks=200, prefix_caching=False), scheduler=scheduler, num_threads=1))
    prompts = [{"prompt_token_ids": [300 + i, 400, 500]} for i in range(12)]
    free = [params(None, temperature=0.9, seed=i, logprobs=5, max_tokens=12) for i in range(12)]
    mixed = [params({"regex": "[0-9]{12,}"}, max_tokens=12) if i % 3 == 0 else each for i, each in enumerate(free)]
    plain, beside = (llm.generate(prompts, each, use_tqdm=False) for each in (free, mixed))
    for i, (one, other) in enumerate(zip(plain, beside)):
        if i % 3:
            assert one.outputs[0].token_ids == other.outputs[0].token_ids and one.outputs[0].logprobs == other.outputs[0].logprobs
        else:
            assert other.outputs[0].text.isdecimal()


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_greedy_outputs_are_those_of_a_search_by_hand(backend: str) -> None:
    """Over the library's float32 logits, each token the likeliest of those after which the text can still be completed."""
    pattern, prompt = "[a-z ]{6,14}[0-9]{2,4}[!?]", SHARED_PREFIX[:11]
    output = run(engine(backend), [(prompt, params({"regex": pattern}, temperature=0, logprobs=3))])[0].outputs[0]
    model = AutoModelForCausalLM.from_pretrained(TOKENIZER.name_or_path, dtype=torch.float32)
    text, found, logprobs = "", [], []
    ascii_texts = {token: piece.decode() for token, piece in enumerate(PIECES) if token > 2 and piece.isascii()}
    while True:
        logits = model(torch.tensor([[*prompt, *found]])).logits[0, -1].detach()
        fits = [token for token, piece in ascii_texts.items() if regex.fullmatch(pattern, text + piece, partial=True)]
        fits += [EOS] * bool(re.fullmatch(pattern, text))
        found.append(max(fits, key=lambda token: float(logits[token])))
        logprobs.append(float(logits.log_softmax(-1)[found[-1]]))
        if found[-1] == EOS:
            break
        text += ascii_texts[found[-1]]
    assert output.token_ids == found and output.text == text and output.finish_reason == "stop" and output.stop_reason is None
    told = [entry[token].logprob for entry, token in zip(output.logprobs or [], found, strict=True)]
    assert np.allclose(told, logprobs, atol=1e-3), "log-probabilities are the model's own"


@pytest.mark.parametrize("short_s", [0.0, math.inf])
def test_tokens_of_a_batch_are_the_likeliest_that_the_library_itself_allows(
    monkeypatch: pytest.MonkeyPatch, short_s: float
) -> None:
    """Rows with and without constraints, which come and go; masks of xgrammar alone, laid over the model's log-probabilities."""
    monkeypatch.setattr("framework.structured.matchers.SHORT_FILL_S", short_s)
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(TOKENIZER, vocab_size=2048, stop_token_ids=[EOS]))
    patterns = ["[a-z]{2,8}-[0-9]{4,6}", None, "(ab|[0-9]){3}", "[a-z ,.]{30}", "[A-Z]"]
    jobs: list[Job] = [
        ((300 + i,), params(pattern and {"regex": pattern}, temperature=0, logprobs=-1, max_tokens=3 + i))
        for i, pattern in enumerate(patterns * 2)
    ]
    for (_, given), output in zip(jobs, run(engine(scheduler=SchedulerConfig(max_num_seqs=4)), jobs)):
        completion, mask = output.outputs[0], xgrammar.allocate_token_bitmask(1, 2048)
        asked = given.structured_outputs
        matcher = xgrammar.GrammarMatcher(compiler.compile_regex(asked.regex)) if asked is not None and asked.regex else None
        for token, entry in zip(completion.token_ids, completion.logprobs or [], strict=True):
            logprobs = np.array([entry[i].logprob for i in range(2048)])
            if matcher is not None:
                matcher.fill_next_token_bitmask(mask)
                logprobs[np.unpackbits(mask.numpy().view(np.uint8), bitorder="little") == 0] = -np.inf
            assert logprobs[token] == logprobs.max()
            assert matcher is None or matcher.accept_token(token)


def test_the_end_of_the_grammar_comes_whatever_else_was_asked_for() -> None:
    jobs: list[Job] = []
    for given in ({"min_tokens": 9}, {"ignore_eos": True}, {"min_tokens": 9, "ignore_eos": True, "stop_token_ids": [500]}):
        jobs += [((400,), params({"regex": "[ab]{2,3}c"}, **given)), ((400,), params({"regex": "[ab]*"}, max_tokens=16, **given))]
    outputs = [output.outputs[0] for output in run(shared_engine(), jobs)]
    for forced, free, least in zip(outputs[::2], outputs[1::2], (9, 16, 9)):
        assert forced.finish_reason == "stop" and re.fullmatch("[ab]{2,3}c", forced.text)
        assert least <= len(free.token_ids), "where the grammar leaves it open, the output goes on"
    assert_idle(shared_engine())


def test_the_end_is_held_back_for_as_many_tokens_as_were_asked_for() -> None:
    """Of the request's own, beside one that is further; and its own stop tokens are no end of sequence."""
    running, done = shared_engine(), {}
    running.add_request("ahead", [400], params(None, max_tokens=100, ignore_eos=True))
    for _ in range(8):
        running.step()
    running.add_request("held", [400], params({"regex": "[ab]*"}, min_tokens=4, logit_bias={EOS: 100.0}))
    stops = {"stop_token_ids": [500], "logit_bias": {500: 100.0}}
    running.add_request("own", [400], params({"regex": "[ab]*"}, ignore_eos=True, **stops))
    while running.has_unfinished():
        done.update({output.request_id: output.outputs[0] for output in running.step()})
    assert len(done["held"].token_ids) == 4 + 1 and done["held"].token_ids[-1] == EOS
    assert (done["own"].token_ids, done["own"].stop_reason) == ([500], 500)
    assert_idle(running)


def test_stop_strings_allowed_tokens_and_bad_words_hold_beside_a_grammar() -> None:
    (a,), (b,) = (TOKENIZER.encode(text, add_special_tokens=False) for text in "ab")
    jobs: list[Job] = [
        ((400,), params({"regex": "[ab]{20}"}, stop=["ba"])),
        ((400,), params({"regex": "[ab]{4}"}, allowed_token_ids=[a, EOS])),
        ((400,), params({"regex": "[ab]{4}"}, bad_words=["a"], allowed_token_ids=[a, b, EOS])),
        ((400,), params({"regex": "[ab]{4}"}, allowed_token_ids=[700])),
        ((400,), params({"regex": "[ab]{4}"}, stop_token_ids=[b])),
    ]
    stopped, only_a, only_b, nothing, ended = (output.outputs[0] for output in run(shared_engine(), jobs))
    assert stopped.stop_reason == "ba" and re.fullmatch("[ab]*", stopped.text)
    assert only_a.text == "aaaa" and only_b.text == "bbbb"
    assert nothing.finish_reason == "error" and b not in ended.token_ids[:-1] and len(ended.text) == 4
    assert_idle(shared_engine())


def test_a_request_that_is_refused_or_fails_disturbs_nobody() -> None:
    running = engine()
    add = running.add_request
    add("refused", [400], params({"json": {"not": {}}}))
    add("nothing", [400], params({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}))
    add("fails", [400], params({"regex": "[a-z]{30}"}, n=2))
    add("fine", [400], params({"regex": "[0-9]{8}"}))
    done: dict[str, RequestOutput] = {}
    while running.has_unfinished():
        for output in running.step():
            done.update({output.request_id: output} if output.finished else {})
        for request, constraint in running._matchers._active.items():  # type: ignore[union-attr]
            if request.request_id == "1_fails":
                constraint.matcher.error = ZeroDivisionError()
    assert done["refused"].refused and '"not"' in str(done["refused"].error)
    assert done["nothing"].refused and "no output fits it" in str(done["nothing"].error)
    assert not done["fails"].refused and str(done["fails"].error).startswith("ZeroDivisionError")
    assert done["fine"].error is None and done["fine"].outputs[0].text.isdecimal()
    assert_idle(running)


def test_requests_that_wait_for_grammars_let_others_by_and_may_be_aborted() -> None:
    running = engine()
    compiler = running._matchers.compiler  # type: ignore[union-attr]
    held = compiler._config = replace(compiler._config, num_threads=0)
    running.add_request("waits", [400], params({"regex": "a"}))
    running.add_request("aborted", [400], params({"regex": "b"}, n=2))
    running.step()
    assert running.is_waiting and running.num_waiting == 3
    running.add_request("free", [400], params(None, max_tokens=3))
    outputs: list[RequestOutput] = []
    while not any(output.finished for output in outputs):
        outputs += running.step()
    assert outputs[-1].request_id == "free"
    (aborted,) = running.abort(["aborted"])
    assert aborted.finished and [completion.finish_reason for completion in aborted.outputs] == ["abort"] * 2
    compiler._config = replace(held, num_threads=1)
    while running.has_unfinished():
        outputs += running.step()
    assert outputs[-1].outputs[0].text == "a" and not running.is_waiting
    assert_idle(running)


def test_a_grammar_whose_mask_takes_long_ends_its_own_request_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested repetitions: their third mask takes seconds, with larger bounds minutes, and nothing can interrupt it."""
    monkeypatch.setattr("framework.structured.matchers.MAX_FILL_S", 0.05)
    left, leave = list[object](), WatchedThread._leave
    monkeypatch.setattr(WatchedThread, "_leave", lambda thread, worker: (left.append(worker), leave(thread, worker)))
    running = engine()
    hostile = params({"grammar": "root ::= (([a-z]{0,30}){0,30}){0,30}"}, max_tokens=40, n=4)
    found = run(running, [((400,), hostile), ((401,), params({"regex": "[a-z]{9}"})), ((402,), params(None))])
    assert found[0].refused and "make it simpler" in str(found[0].error)
    assert len(left) == 1, "it was waited for, or tried again"
    assert len(found[1].outputs[0].text) == 9 and len(found[2].outputs[0].token_ids) == 24
    assert_idle(running)


def test_masks_that_take_long_together_end_the_dearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ambiguous grammar, of which every token makes the next mask a little dearer: one does not reach the limit of a mask."""
    running = engine()
    assert running._matchers is not None
    running._matchers._thread.max_s = 100.0
    monkeypatch.setattr("framework.structured.matchers.MAX_FILL_S", 0.1)
    hostile = params({"grammar": "start: s\ns: s s s | s s | /[a-z]/ | \n"}, max_tokens=100, n=6)
    found = run(running, [((400,), hostile), ((401,), params({"regex": "[a-z]{60}"}, max_tokens=100))])
    assert found[0].refused and "make it simpler" in str(found[0].error)
    assert len(found[1].outputs[0].text) == 60
    assert_idle(running)


def test_grammars_are_refused_while_too_many_masks_are_still_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.structured.watched.WatchedThread.num_stuck", MAX_STUCK + 1)
    running = engine()
    with pytest.raises(RuntimeError, match="try again later"):
        running.add_request("0", [400], params({"regex": "a"}))
    assert_idle(running)


def test_hundreds_of_requests_with_schemas_of_their_own() -> None:
    running = engine(scheduler=SchedulerConfig(max_num_seqs=32))
    jobs: list[Job] = []
    for i in range(200):
        jobs.append(((400 + i,), params({"json": {"const": f"answer {i}"}}, max_tokens=20)))
    for i, output in enumerate(run(running, jobs)):
        assert json.loads(output.outputs[0].text) == f"answer {i}"
    assert_idle(running)


def test_engines_that_cannot_mask_say_so() -> None:
    null = build_engine(EngineConfig(executor=ExecutorConfig(kind="null")))
    with pytest.raises(ValueError, match=r"executor\.kind=null makes tokens up"):
        null.add_request("0", [400], params({"regex": "a"}))
    without = build_engine(EngineConfig(ModelConfig(skip_tokenizer=True), CacheConfig(num_blocks=50)))
    with pytest.raises(ValueError, match="structured_outputs needs a tokenizer"):
        without.add_request("0", [400], params({"regex": "a"}, detokenize=False))


def test_the_offline_interface_raises_what_is_the_users_fault_as_such() -> None:
    llm = LLM("tiny", structured_outputs_config={"backend": "xgrammar"}, num_gpu_blocks_override=100)
    with pytest.raises(ValueError, match=r"prompt 1 of 2 failed: structured_outputs: json: xgrammar would not hold .*'multipleOf'"):
        bad = params({"json": {"type": "integer", "multipleOf": 3}})
        llm.generate(["a", "b"], [params(None), bad], use_tqdm=False)
    (output,) = llm.generate(["a"], params({"choice": ["yes", "no"]}), use_tqdm=False)
    assert output.outputs[0].text in ("yes", "no")


def test_the_library_that_held_a_request_is_told() -> None:
    llm = LLM("tiny", num_gpu_blocks_override=100)
    asked = [params(None), params({"regex": "[ab]{2}"}, n=2), params({"choice": ["a"]}), params({"grammar": 'root ::= "a"'})]
    llm.generate(["a"] * 4, asked, use_tqdm=False)
    assert llm.engine.metrics().structured == {"llguidance": 3, "xgrammar": 1}
    told = {metric.labels["backend"]: metric for metric in llm.get_metrics() if metric.name == "kernelswap:structured_requests"}
    assert set(told) == {"llguidance", "xgrammar"}
