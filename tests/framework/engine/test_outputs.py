"""What users get: text, stop strings, log-probabilities and finish reasons, with a scripted executor in place of a model."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.build import input_processor
from framework.clock import VirtualClock
from framework.config import ModelConfig
from framework.engine.detokenizer import TokenTexts
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput, StepOutput, TokenLogprobs
from framework.executor.null import DoneStep
from framework.models.read import read_model
from framework.outputs import Logprob, RequestOutput
from framework.sampling_params import RequestOutputKind, SamplingParams

from ..engines import MODELS, make_config

MODEL = ModelConfig("tiny")
DELTA, CUMULATIVE, FINAL_ONLY = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY


class Script:
    """An executor that returns given tokens for every request, and log-probabilities that tell what they belong to: of token t
    at position p, -t - p/1000."""

    groups, num_blocks, vocab_size, max_model_len = MODELS["full"], 100, 2048, 300
    in_flight_steps, num_stages, num_drafts = 1, 1, 0
    draft_max_model_len, drafts_read_ahead, has_states = None, False, False
    weight_bytes = nominal_weight_bytes = 0

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.rows: dict[int, Any] = {}

    def submit(self, step: StepInput) -> DoneStep:
        for request in step.new:
            self.rows[request.seat] = [request, request.num_computed_tokens]
        output = StepOutput(step.step_id, [])
        for row, (seat, count, samples) in enumerate(zip(step.seats, step.num_tokens, step.num_logits)):
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


def test_rows_that_failed_are_counted(inputs: InputProcessor) -> None:
    engine = Engine(make_config(), Script([5, -1, *[0] * 100]), inputs, VirtualClock())
    engine.add_request("r", "def f", SamplingParams(max_tokens=20))
    while engine.has_unfinished():
        engine.step()
    found = engine.metrics()
    assert (found.corrupted, found.finished["error"]) == (1, 1)


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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    mix=st.lists(
        st.fixed_dictionaries(
            {
                "n": st.integers(1, 3),
                "logprobs": st.sampled_from([None, 0, 2]),
                "max_tokens": st.integers(1, 12),
                "stop": st.sampled_from([None, "b", "de"]),
                "seed": st.integers(0, 3),
                "output_kind": st.sampled_from(list(RequestOutputKind)),
            }
        ),
        min_size=1,
        max_size=5,
    ),
    stopping=st.sets(st.integers(0, 4)),
    depth=st.integers(2, 3),
    num_drafts=st.sampled_from([0, 0, 3]),
    budget=st.sampled_from([5, 64]),
)
def test_every_token_has_its_logprobs_whatever_is_in_flight(
    inputs: InputProcessor, mix: list[dict[str, Any]], stopping: set[int], depth: int, num_drafts: int, budget: int
) -> None:
    """Completions end at different steps, while later tokens of theirs are in flight."""
    letters = [inputs.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "abcdefgh"]

    def serve(depth: int, num_drafts: int) -> dict[tuple[str, int], tuple[list[int], str, list[Any] | None, Any]]:
        executor = Letters(letters, num_drafts)
        engine = Engine(make_config(in_flight_steps=depth, max_num_batched_tokens=budget), executor, inputs, VirtualClock())
        for i, wanted in enumerate(mix):
            params = SamplingParams(**wanted, stop_token_ids=[letters[5]] if i in stopping else [])
            engine.add_request(str(i), {"prompt_token_ids": [9] * (3 + i)}, params)
        found: dict[tuple[str, int], tuple[list[int], str, list[Any] | None, Any]] = {}
        while engine.has_unfinished():
            for output in engine.step():
                for completion in output.outputs:
                    wants = mix[int(output.request_id)]["logprobs"] is not None
                    assert (completion.logprobs is not None) == wants
                    if completion.logprobs is not None:
                        assert [next(iter(entry)) for entry in completion.logprobs] == completion.token_ids
                    key = (output.request_id, completion.index)
                    end = (completion.finish_reason, completion.stop_reason, completion.cumulative_logprob)
                    ids, text, logprobs = completion.token_ids, completion.text, completion.logprobs
                    if mix[int(output.request_id)]["output_kind"] is DELTA and key in found:
                        before = found[key]
                        ids, text, logprobs = before[0] + ids, before[1] + text, before[2] and before[2] + (logprobs or [])
                    found[key] = ids, text, logprobs, end
        assert not engine.scheduler.requests and engine.manager.pool.num_free == 99
        return found

    assert serve(depth, num_drafts) == serve(1, 0)


class Letters(Script):
    """Letters that depend on the seed and the position, with log-probabilities; of ``num_drafts`` guesses some are right."""

    def __init__(self, letters: list[int], num_drafts: int) -> None:
        super().__init__([])
        self.letters, self.num_drafts = letters, num_drafts

    def submit(self, step: StepInput) -> DoneStep:
        output = StepOutput(step.step_id, [], [] if self.num_drafts else None)
        for request in step.new:
            self.rows[request.seat] = [request, request.num_computed_tokens]
        for seat, count, num_logits in zip(step.seats, step.num_tokens, step.num_logits):
            request, start = self.rows[seat]
            num_drafts = max(num_logits - 1, 0)
            end = start + count - num_drafts
            if num_logits:
                right = (request.sampling.seed + end) % (num_drafts + 1)
                for position in range(end, end + right + 1):
                    token = self.letters[(request.sampling.seed * 5 + position * position) % len(self.letters)]
                    if request.sampling.logprobs is not None:
                        output.logprobs[len(output.token_ids)] = self.logprobs(token, position, request.sampling.logprobs)
                    output.token_ids.append(token)
                if output.num_accepted is not None:
                    output.num_accepted.append(right)
                end += right
            self.rows[seat][1] = end
        return DoneStep(output)


def test_stop_conditions_count_token_by_token_when_several_come_at_once(inputs: InputProcessor) -> None:
    """Of eight tokens that come at once, the third ends the request: as a stop token, by a stop string, or by its length."""
    letters = inputs.tokenizer.encode("a b c d e f g h i j", add_special_tokens=False)

    class AllRight(Letters):
        def submit(self, step: StepInput) -> DoneStep:
            new = letters[:1] if step.new else letters[1 : 1 + step.num_tokens[0]]
            logprobs = {i: self.logprobs(token, i, 0) for i, token in enumerate(new)}
            return DoneStep(StepOutput(step.step_id, new, [len(new) - 1], logprobs))

    for params, expected, reason in (
        ({"stop_token_ids": [letters[3]]}, "a b c", ("stop", letters[3])),
        ({"stop": "d"}, "a b c ", ("stop", "d")),
        ({"stop": "d", "stop_token_ids": [letters[5]]}, "a b c ", ("stop", "d")),
        ({"max_tokens": 4}, "a b c d", ("length", None)),
        ({"stop_token_ids": [letters[2], letters[3]], "min_tokens": 3}, "a b c", ("stop", letters[3])),
    ):
        for kind in RequestOutputKind:
            engine = Engine(make_config(), AllRight(letters, 7), inputs, VirtualClock())
            wanted = SamplingParams(**{"max_tokens": 9, "output_kind": kind, "logprobs": 0, **params})
            engine.add_request("r", {"prompt_token_ids": [9]}, wanted)
            outputs = []
            while engine.has_unfinished():
                outputs += engine.step()
            completions = [output.outputs[0] for output in outputs]
            tokens = [token for completion in completions for token in completion.token_ids]
            assert (tokens if kind is DELTA else completions[-1].token_ids) == letters[:4]
            assert (text(outputs) if kind is DELTA else completions[-1].text) == expected
            assert all(len(completion.logprobs or ()) == len(completion.token_ids) for completion in completions)
            assert (completions[-1].finish_reason, completions[-1].stop_reason) == reason
            assert engine.stats().num_output_tokens >= 4 and engine.manager.pool.num_free == 99


def test_prompt_logprobs_are_whole_whatever_the_cache_holds(inputs: InputProcessor) -> None:
    engine = Engine(make_config(prefix_caching=True), Script([5] * 50), inputs, VirtualClock())
    prompt = {"prompt_token_ids": list(range(20, 60))}
    for skip in (None, False, True):
        params = SamplingParams(prompt_logprobs=0, max_tokens=2, skip_reading_prefix_cache=skip, output_kind=FINAL_ONLY)
        engine.add_request("r", prompt, params)
        output = [output for _ in range(3) for output in engine.step()][-1]
        assert output.prompt_logprobs is not None and output.num_cached_tokens == 0
        assert [list(entry or ()) for entry in output.prompt_logprobs] == [[], *([token] for token in range(21, 60))]


@pytest.mark.parametrize("n", [1, 2])
def test_deltas_tell_prompt_logprobs_once(inputs: InputProcessor, n: int) -> None:
    given = {"prompt_logprobs": 0, "max_tokens": 4, "n": n}
    prompt = {"prompt_token_ids": list(range(20, 31))}
    told = [output.prompt_logprobs for output in run(inputs, [5] * 9, prompt, output_kind=DELTA, **given)]
    assert told[0] is not None and len(told[0]) == 11 and told[1:] == [None] * (len(told) - 1)
    told = [output.prompt_logprobs for output in run(inputs, [5] * 9, prompt, output_kind=CUMULATIVE, **given)]
    assert all(entries is not None and len(entries) == 11 for entries in told)


def test_ends_of_sequence_besides_the_tokenizers_own_are_told(inputs: InputProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    (eos,) = inputs.eos_token_ids
    monkeypatch.setattr(inputs, "eos_token_ids", frozenset((eos, 700)))
    for token, reason in ((eos, None), (700, 700)):
        (output,) = run(inputs, [5, token, 6], output_kind=FINAL_ONLY, max_tokens=9)
        completion = output.outputs[0]
        assert (completion.token_ids, completion.finish_reason, completion.stop_reason) == ([5, token], "stop", reason)
        (output,) = run(inputs, [5, token, 6], output_kind=FINAL_ONLY, max_tokens=3, ignore_eos=True)
        assert output.outputs[0].token_ids == [5, token, 6] and output.outputs[0].finish_reason == "length"
    (output,) = run(inputs, [5, eos, 6], output_kind=FINAL_ONLY, max_tokens=3, ignore_eos=True, stop_token_ids=[eos])
    assert output.outputs[0].stop_reason == eos


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_holds_back_every_end(inputs: InputProcessor, ignore_eos: bool) -> None:
    script = Script([5] * 5)
    engine = Engine(make_config(), script, inputs, VirtualClock())
    engine.add_request("r", "x", SamplingParams(min_tokens=2, ignore_eos=ignore_eos, stop_token_ids=[9], max_tokens=2))
    engine.step()
    assert script.rows[0][0].sampling.all_stop_token_ids == sorted({9, *inputs.eos_token_ids})


@pytest.mark.parametrize("kind", list(RequestOutputKind))
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("place", ["text", "logprobs"])
def test_a_request_whose_output_cannot_be_made_ends_alone(
    inputs: InputProcessor, kind: RequestOutputKind, depth: int, n: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TokenTexts(inputs.tokenizer)
    engine = Engine(make_config(in_flight_steps=depth), Script([5, 6, 7, 8, 9, 10]), inputs, VirtualClock())
    for name in ("good", "bad", "after"):
        logprobs = 1 if name == "bad" or place == "text" else None
        params = SamplingParams(max_tokens=5, logprobs=logprobs, output_kind=kind, n=n, seed=0)
        engine.add_request(name, {"prompt_token_ids": [20, 21]}, params)

    def fail_at_third(token: int) -> str:
        if token == 7:
            raise UnicodeError("no such character")
        return texts.decoded_token(token)

    if place == "text":
        detokenizer = SimpleNamespace(push=fail_at_third, flush=str)
        engine.processor.groups["bad"].samples[-1].detokenizer = detokenizer  # type: ignore[assignment]
    else:
        monkeypatch.setattr(engine.processor.texts, "decoded_token", fail_at_third)
    outputs: dict[str, list[RequestOutput]] = {"good": [], "bad": [], "after": []}
    while engine.has_unfinished():
        for output in engine.step():
            outputs[output.request_id].append(output)
    for name in outputs:
        *before, last = outputs[name]
        assert last.finished and not any(output.finished for output in before)
        assert last.error == ("UnicodeError: no such character" if name == "bad" else None)
        for completion in [completion for output in outputs[name] for completion in output.outputs]:
            assert completion.logprobs is None or len(completion.logprobs) == len(completion.token_ids)
        told = [token for output in outputs[name] for token in output.outputs[-1].token_ids if output.outputs[-1].index == n - 1]
        tokens = told if kind is DELTA else last.outputs[-1].token_ids
        assert tokens in ([5], [5, 6]) if name == "bad" else tokens == [5, 6, 7, 8, 9]
    assert not engine.scheduler.requests and engine.manager.pool.num_free == 99
