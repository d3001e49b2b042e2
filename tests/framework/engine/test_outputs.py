"""What users get: text, stop strings, log-probabilities and finish reasons, with a scripted executor in place of a model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from framework.build import input_processor
from framework.clock import VirtualClock
from framework.config import ModelConfig
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput, StepOutput, TokenLogprobs
from framework.executor.null import DoneStep
from framework.models.architecture import read_model
from framework.outputs import Logprob, RequestOutput
from framework.sampling_params import RequestOutputKind, SamplingParams

from ..engines import MODELS, make_config

MODEL = ModelConfig("tiny")
DELTA, CUMULATIVE, FINAL_ONLY = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY


class Script:
    """An executor that returns given tokens for every request, and log-probabilities that tell what they belong to: of token t
    at position p, -t - p/1000."""

    groups, num_blocks, vocab_size, max_model_len, in_flight_steps, num_drafts = MODELS["full"], 100, 2048, 300, 1, 0

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.rows: dict[int, Any] = {}

    def submit(self, step: StepInput) -> DoneStep:
        for request in step.new:
            self.rows[request.seat] = [request, request.num_computed_tokens]
        output = StepOutput(step.step_id, [])
        for row, (seat, count, samples) in enumerate(zip(step.seats, step.num_tokens, step.samples)):
            request, start = self.rows[seat]
            end = self.rows[seat][1] = start + count
            if samples:
                token = self.tokens[end - request.num_prompt_tokens]
                if request.sampling.logprobs is not None:
                    output.logprobs[len(output.token_ids)] = self.logprobs(token, end, request.sampling.logprobs)
                output.token_ids.append(token)
            if request.sampling.prompt_logprobs is not None:
                wanted = range(start + 1, min(end + 1, request.num_prompt_tokens))
                entries = [self.logprobs(request.token_ids[p], p, request.sampling.prompt_logprobs) for p in wanted]
                if entries:
                    output.prompt_logprobs[row] = entries
        return DoneStep(output)

    def logprobs(self, token: int, position: int, num_top: int) -> TokenLogprobs:
        top = list(range(token, token + num_top))
        return TokenLogprobs(token, -token - position / 1000, 1, top, [-t - position / 1000 for t in top])

    def plan_report(self) -> dict[str, dict[str, Any]]:
        return {}

    def shutdown(self) -> None: ...


@pytest.fixture(scope="module")
def inputs() -> InputProcessor:
    return input_processor(MODEL, read_model(MODEL))


def run(inputs: InputProcessor, tokens: list[int] | str, prompt: Any = "def f", **given: Any) -> list[RequestOutput]:
    """All outputs of one request; ``given`` are sampling parameters or settings of the scheduler."""
    if isinstance(tokens, str):
        tokens = inputs.tokenizer.encode(tokens, add_special_tokens=False)
    scheduler = {name: given.pop(name) for name in ("max_num_batched_tokens", "in_flight_steps") if name in given}
    engine = Engine(make_config(**scheduler), Script([*tokens, *[0] * 100]), inputs, VirtualClock())
    engine.add_request("r", prompt, SamplingParams(**{"max_tokens": len(tokens), **given}))
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    return outputs


def text(outputs: list[RequestOutput]) -> str:
    return "".join(output.outputs[0].text for output in outputs)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_every_kind_tells_the_same_text(inputs: InputProcessor, kind: RequestOutputKind, depth: int) -> None:
    completion = "größe = 测试 🙂"
    outputs = run(inputs, completion, output_kind=kind, in_flight_steps=depth)
    assert (text(outputs) if kind is DELTA else outputs[-1].outputs[0].text) == completion
    assert outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "length"
    assert outputs[-1].prompt == "def f" and outputs[-1].prompt_token_ids == inputs.tokenizer.encode("def f")
    assert len(outputs) == (1 if kind is FINAL_ONLY else len(inputs.tokenizer.encode(completion, add_special_tokens=False)))
    if kind is CUMULATIVE:
        texts = [output.outputs[0].text for output in outputs]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_end_of_sequence(inputs: InputProcessor) -> None:
    (eos,) = inputs.eos_token_ids
    tokens = [*inputs.tokenizer.encode("x = 1", add_special_tokens=False), eos]
    (output,) = run(inputs, tokens, output_kind=FINAL_ONLY, max_tokens=50)
    completion = output.outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("x = 1", "stop", None)
    assert completion.token_ids == tokens
    (output,) = run(inputs, tokens, output_kind=FINAL_ONLY, ignore_eos=True, max_tokens=len(tokens), skip_special_tokens=False)
    assert output.outputs[0].finish_reason == "length" and output.outputs[0].text == "x = 1<|eos|>"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_tells_its_id(inputs: InputProcessor, include: bool) -> None:
    tokens = inputs.tokenizer.encode("abc = 5", add_special_tokens=False)
    stop = tokens[-1]
    (output,) = run(
        inputs, tokens, output_kind=FINAL_ONLY, stop_token_ids=[stop], max_tokens=50, include_stop_str_in_output=include
    )
    completion = output.outputs[0]
    assert completion.stop_reason == stop and completion.finish_reason == "stop" and completion.token_ids == tokens
    assert completion.text == inputs.tokenizer.decode(tokens if include else tokens[:-1])


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", list(RequestOutputKind))
@pytest.mark.parametrize(("include", "expected"), [(False, "a = 1\n"), (True, "a = 1\n\ndef")])
def test_stop_strings(inputs: InputProcessor, include: bool, expected: str, kind: RequestOutputKind, depth: int) -> None:
    outputs = run(
        inputs,
        "a = 1\n\ndef g(): pass",
        stop=["\ndef", "nothing"],
        include_stop_str_in_output=include,
        output_kind=kind,
        in_flight_steps=depth,
    )
    last = outputs[-1].outputs[0]
    assert (text(outputs) if kind is DELTA else last.text) == expected
    assert (last.finish_reason, last.stop_reason) == ("stop", "\ndef") and outputs[-1].finished


def test_deltas_never_hold_what_a_stop_string_takes_back(inputs: InputProcessor) -> None:
    outputs = run(inputs, "wait END", stop=["END!"], output_kind=DELTA)
    assert text(outputs) == "wait END" and outputs[-1].outputs[0].finish_reason == "length"
    assert not any("END" in output.outputs[0].text for output in outputs[:-1])


def test_a_stop_string_at_the_last_token_is_a_stop(inputs: InputProcessor) -> None:
    (output,) = run(inputs, "a b", stop="b", output_kind=FINAL_ONLY)
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("a ", "stop")


def test_stop_strings_before_min_tokens_do_not_count(inputs: InputProcessor) -> None:
    tokens = inputs.tokenizer.encode("x x x x", add_special_tokens=False)
    (output,) = run(inputs, tokens, stop="x", min_tokens=2, output_kind=FINAL_ONLY)
    assert output.outputs[0].text == "x x " and len(output.outputs[0].token_ids) == 3


def test_a_failed_row_ends_with_an_error(inputs: InputProcessor) -> None:
    outputs = run(inputs, [5, 6, -1], max_tokens=20, output_kind=DELTA, logprobs=0)
    assert outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "error" and outputs[-1].outputs[0].token_ids == []
    assert [token for output in outputs for token in output.outputs[0].token_ids] == [5, 6]
    assert all(len(output.outputs[0].logprobs or ()) == len(output.outputs[0].token_ids) for output in outputs)


def test_without_detokenizing_there_is_no_text(inputs: InputProcessor) -> None:
    (output,) = run(inputs, "a b", detokenize=False, output_kind=FINAL_ONLY)
    assert output.outputs[0].text == "" and output.outputs[0].token_ids


def test_logprobs(inputs: InputProcessor) -> None:
    tokens = [700, 800, 900]
    prompt = {"prompt_token_ids": [10, 11]}
    (output,) = run(inputs, tokens, prompt, logprobs=2, output_kind=FINAL_ONLY)
    completion = output.outputs[0]
    assert completion.logprobs is not None and [list(entry) for entry in completion.logprobs] == [[t, t + 1] for t in tokens]
    decoded = inputs.tokenizer.decode([701])
    assert completion.logprobs[0] == {700: Logprob(-700.002, 1, inputs.tokenizer.decode([700])), 701: Logprob(-701.002, 2, decoded)}
    assert completion.cumulative_logprob == pytest.approx(-700.002 - 800.003 - 900.004)
    deltas = run(inputs, tokens, prompt, logprobs=2, output_kind=DELTA)
    assert [output.outputs[0].logprobs for output in deltas] == [[entry] for entry in completion.logprobs]
    assert deltas[-1].outputs[0].cumulative_logprob == completion.cumulative_logprob


def test_the_sampled_token_is_told_beside_the_top_ones(inputs: InputProcessor) -> None:
    (output,) = run(inputs, [7], logprobs=0, output_kind=FINAL_ONLY)
    assert output.outputs[0].logprobs is not None and list(output.outputs[0].logprobs[0]) == [7]


@pytest.mark.parametrize("budget", [64, 3])
def test_prompt_logprobs_of_a_prompt_computed_in_parts(inputs: InputProcessor, budget: int) -> None:
    prompt = list(range(20, 31))
    (output,) = run(
        inputs, [5], {"prompt_token_ids": prompt}, prompt_logprobs=1, output_kind=FINAL_ONLY, max_num_batched_tokens=budget
    )
    found = output.prompt_logprobs
    assert found is not None and found[0] is None and len(found) == len(prompt)
    assert [next(iter(entry.items())) for entry in found[1:] if entry] == [
        (token, Logprob(-token - position / 1000, 1, inputs.tokenizer.decode([token])))
        for position, token in enumerate(prompt[1:], 1)
    ]


def test_prompt_logprobs_come_once_when_a_request_resumes(inputs: InputProcessor) -> None:
    engine = Engine(make_config(prefix_caching=True), Script([5] * 50), inputs, VirtualClock())
    prompt = {"prompt_token_ids": list(range(20, 31))}
    for name in ("a", "b"):
        engine.add_request(name, prompt, SamplingParams(prompt_logprobs=0, max_tokens=6, n=2 if name == "b" else 1))
    engine.step()
    scheduler = engine.scheduler
    scheduler._preempt(scheduler.running.pop())
    last = {}
    while engine.has_unfinished():
        last.update((output.request_id, output) for output in engine.step())
    assert engine.stats().num_preemptions == 1
    for output in last.values():
        assert output.prompt_logprobs is not None and [list(entry or ()) for entry in output.prompt_logprobs[1:]] == [
            [token] for token in prompt["prompt_token_ids"][1:]
        ]


def test_bad_words_reach_the_executor_as_tokens(inputs: InputProcessor) -> None:
    script = Script([5] * 5)
    engine = Engine(make_config(), script, inputs, VirtualClock())
    engine.add_request("r", "x", SamplingParams(bad_words=["def"], stop_token_ids=[9], max_tokens=2))
    engine.step()
    sampling = script.rows[0][0].sampling
    assert inputs.tokenizer.encode("def", add_special_tokens=False) in sampling.bad_words_token_ids
    assert sampling.all_stop_token_ids == sorted({9, *inputs.eos_token_ids}) and sampling.seed is not None
