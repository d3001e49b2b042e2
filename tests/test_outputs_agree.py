"""What users read: the three kinds of output tell the same, and it is what the library's tokenizer makes of the tokens, cut at the
stop strings."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from transformers import AutoTokenizer

from framework import EngineConfig, RequestOutputKind, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.outputs import CompletionOutput, RequestOutput

from .transformers_oracle import TINY

DELTA, CUMULATIVE, FINAL_ONLY = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY
TOKENIZER = AutoTokenizer.from_pretrained(TINY)
EOS = TOKENIZER.eos_token_id
PIECES = [token for token in range(2048) if TOKENIZER.decode([token]) == "\ufffd"]
"""Tokens that are part of a character: some completions are to be full of them, in any order."""
PROMPTS = ["def read(self, path):\n", "# Größe 测试 🙂\n", "import os\n", "class A:\n    "]
STOPS = ["\n", "self", "e", " =", "return ", "):\n", "s.", "  "]


def make_params(rng: random.Random) -> SamplingParams:
    more: dict[str, int] = rng.choice([{"n": 3}, {"logprobs": 2}, {"n": 2, "logprobs": 0, "prompt_logprobs": 1}, {}])
    return SamplingParams(
        temperature=rng.choice([0.5, 1.0, 2.0]),
        seed=rng.randrange(1000),
        max_tokens=rng.randint(1, 30),
        stop=rng.choice([[], rng.sample(STOPS, 3)]),
        stop_token_ids=rng.choice([[], [rng.randrange(2048) for _ in range(100)]]),
        include_stop_str_in_output=rng.random() < 0.5,
        skip_special_tokens=rng.random() < 0.5,
        logit_bias={EOS: rng.choice([-5.0, 5.0])} | rng.choice([{}, dict.fromkeys(PIECES, 12.0)]),
        ignore_eos=rng.random() < 0.5,
        **more,
    )


def stream(engine: Engine, jobs: list[tuple[str, SamplingParams]], kind: RequestOutputKind) -> list[list[RequestOutput]]:
    """All outputs of each request."""
    found = defaultdict(list)
    for index, (prompt, params) in enumerate(jobs):
        engine.add_request(str(index), prompt, replace(params, output_kind=kind))
    while engine.has_unfinished():
        for output in engine.step():
            found[output.request_id].append(output)
    return [found[str(index)] for index in range(len(jobs))]


@pytest.mark.parametrize("in_flight_steps", [1, 2])
def test_the_kinds_of_output_tell_the_same(in_flight_steps: int) -> None:
    rng = random.Random(in_flight_steps)
    jobs = [(rng.choice(PROMPTS), make_params(rng)) for _ in range(40)]
    engine = build_engine(
        EngineConfig(
            ModelConfig(str(TINY), dtype="float32"),
            CacheConfig(num_blocks=300),
            SchedulerConfig(max_num_seqs=40, in_flight_steps=in_flight_steps),
            num_threads=1,
        )
    )
    streams = zip(jobs, stream(engine, jobs, DELTA), stream(engine, jobs, CUMULATIVE), stream(engine, jobs, FINAL_ONLY))
    for (_, params), deltas, cumulative, final in streams:
        assert len(final) == 1
        whole = final[0]
        for outputs in (deltas, cumulative, final):
            assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
            assert whole.prompt_logprobs in [output.prompt_logprobs for output in outputs]
        assert cumulative[-1].outputs == whole.outputs
        assert [completion.index for completion in whole.outputs] == list(range(params.n))
        for completion in whole.outputs:
            check_text(params, completion)
            assert completion.logprobs is None or len(completion.logprobs) == len(completion.token_ids)
            parts = [c for output in deltas for c in output.outputs if c.index == completion.index]
            assert joined(parts) == completion
            for earlier, later in pairwise(output.outputs[completion.index] for output in cumulative):
                assert later.text.startswith(earlier.text)
                assert later.token_ids[: len(earlier.token_ids)] == earlier.token_ids


def joined(parts: list[CompletionOutput]) -> CompletionOutput:
    """The completion that deltas add up to; what each tells of the whole is taken from the last."""
    whole = replace(parts[-1], text="".join(part.text for part in parts))
    whole.token_ids = [token for part in parts for token in part.token_ids]
    if whole.logprobs is not None:
        whole.logprobs = [entry for part in parts for entry in part.logprobs or ()]
    return whole


def check_text(params: SamplingParams, completion: CompletionOutput) -> None:
    def decode(token_ids: list[int]) -> str:
        return TOKENIZER.decode(token_ids, skip_special_tokens=params.skip_special_tokens)

    assert isinstance(params.stop, list)
    tokens = completion.token_ids
    assert not any(stop in decode(tokens[:-1]) for stop in params.stop), "it went on after a stop string"
    by_string = isinstance(completion.stop_reason, str)
    by_token = completion.finish_reason == "stop" and not by_string
    text = decode(tokens[:-1] if by_token and not params.include_stop_str_in_output else tokens)
    places = [(text.find(stop), -len(stop), stop) for stop in params.stop if stop in text]
    if places and not by_token:
        at, _, stop = min(places)
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        text = text[: at + len(stop) * params.include_stop_str_in_output]
    else:
        assert not by_string
    assert completion.text == text
