"""From what users pass to what the engine takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from framework.build import input_processor
from framework.config import ModelConfig
from framework.engine.inputs import InputProcessor, check_priority
from framework.models.read import read_model
from framework.sampling_params import RequestOutputKind, SamplingParams

from ..engines import assert_idle, make_engine


@pytest.fixture(scope="module")
def inputs() -> InputProcessor:
    config = ModelConfig("tiny")
    return input_processor(config, read_model(config))


def ids_only(eos: tuple[int, ...] = (), **given: Any) -> InputProcessor:
    return InputProcessor(None, {}, eos, **given)


@pytest.mark.parametrize("priority", [0, -3, 2**70, np.int32(4)])
def test_priorities_are_integers(priority: object) -> None:
    assert type(check_priority(priority)) is int and check_priority(priority) == priority


@pytest.mark.parametrize("priority", ["high", 1.0, True, None, float("nan")])
def test_what_cannot_be_ordered_is_no_priority(priority: object) -> None:
    with pytest.raises(ValueError, match="it must be an integer"):
        check_priority(priority)


@pytest.mark.parametrize("ids", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), range(1, 4), [np.int32(1), 2, 3]])
def test_token_ids_of_every_kind_become_a_list_of_ints(ids: Any) -> None:
    for prompt in (ids, {"prompt_token_ids": ids}):
        found = ids_only().prompt(prompt).token_ids
        assert found == [1, 2, 3] and type(found) is list and {type(token) for token in found} == {int}


@pytest.mark.parametrize(
    "ids",
    [b"abc", bytearray(b"abc"), memoryview(b"abc"), [True, False], [1, True], [1.0], ["1"], [[1, 2]], np.array([1.5]), 5, None],
)
def test_what_is_no_list_of_token_ids_is_refused(ids: Any) -> None:
    for prompt in (ids, {"prompt_token_ids": ids}):
        with pytest.raises(ValueError, match="prompt"):
            ids_only().prompt(prompt)


def test_prompts_as_dicts(inputs: InputProcessor) -> None:
    given = inputs.prompt({"prompt": "def f", "cache_salt": "me", "multi_modal_data": None})
    assert given == inputs.prompt({"prompt_token_ids": given.token_ids, "prompt": "def f", "cache_salt": "me"})
    assert (given.text, given.cache_salt) == ("def f", "me")


@pytest.mark.parametrize("key", ["prompt_embeds", "mm_processor_kwargs", "promt", 5])
def test_parts_of_a_prompt_that_would_be_dropped_are_refused_by_name(inputs: InputProcessor, key: Any) -> None:
    with pytest.raises(ValueError, match=f"{key!r} is not available in this version"):
        inputs.prompt({"prompt": "def f", key: [1.0]})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "needs 'prompt'"),
        ({"prompt": [1, 2]}, "Token ids go under 'prompt_token_ids'"),
        ({"prompt": b"def"}, "must be text"),
        ("\ud800", "UTF-8"),
        ({"prompt": "x\udfff"}, "UTF-8"),
        ([np.array(5)], "list of integers"),
        (np.array(5), "list of token ids"),
        ({"prompt": "x", "cache_salt": 5}, "'cache_salt' must be text"),
        ({"prompt": "x", "cache_salt": ""}, "'cache_salt' must be text"),
    ],
)
def test_prompts_of_another_form_are_refused(inputs: InputProcessor, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inputs.prompt(prompt)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, "greedy", 5])
def test_what_is_no_sampling_params_is_refused(params: Any) -> None:
    with pytest.raises(ValueError, match="must be SamplingParams"):
        ids_only().params(params)


@pytest.mark.parametrize(("name", "value"), [("top_k", 2**31), ("repetition_penalty", 1e39), ("bad_words", "abc"), ("stop", 5)])
def test_fields_set_after_construction_are_checked_before_anything_is_queued(name: str, value: Any) -> None:
    params, engine = SamplingParams(), make_engine()
    setattr(params, name, value)
    with pytest.raises(ValueError, match=f"SamplingParams: {name}="):
        engine.add_request("r", [1, 2], params)
    assert_idle(engine)


def test_bad_words_as_tokens_beyond_the_vocabulary_are_never_generated_anyway() -> None:
    params, engine = SamplingParams(), make_engine()
    params.bad_words_token_ids = [[1], [2, 50]]
    engine.add_request("r", [1, 2], params)
    assert next(iter(engine.scheduler.requests)).params.bad_words_token_ids == [[1]]


def test_a_copy_is_completed_and_the_callers_stays_as_it_was(inputs: InputProcessor) -> None:
    given = SamplingParams(bad_words=["def"], stop_token_ids=[9], logit_bias={1: 2.0})
    before = given.clone()
    own = inputs.params(given, RequestOutputKind.FINAL_ONLY)
    assert own.output_kind is RequestOutputKind.FINAL_ONLY
    assert inputs.tokenizer.encode("def", add_special_tokens=False) in (own.bad_words_token_ids or [])
    assert own.all_stop_token_ids == sorted({9, *inputs.eos_token_ids})
    assert inputs.params(own) == own, "what is complete stays as it is"
    assert own.stop_token_ids is not None and own.logit_bias is not None
    own.stop_token_ids.append(3)
    own.logit_bias[5] = 1.0
    assert given == before


def test_ends_of_sequence() -> None:
    """One is the model's own; of several, those that are not the tokenizer's are told as stop tokens. min_tokens knows them all.
    The own is not told even where a request asks to stop there."""
    params = ids_only((7,)).params(SamplingParams(stop_token_ids=[7, 9]))
    assert (params.stop_token_ids, params.all_stop_token_ids) == ([9], [7, 9])
    params = ids_only((7,)).params(SamplingParams(stop_token_ids=[9]))
    assert (params.stop_token_ids, params.all_stop_token_ids) == ([9], [7, 9])
    params = ids_only((7, 8)).params(SamplingParams(stop_token_ids=[9]))
    assert (params.stop_token_ids, params.all_stop_token_ids) == ([7, 8, 9], [7, 8, 9])
    params = ids_only((7, 8)).params(SamplingParams(stop_token_ids=[9], ignore_eos=True))
    assert (params.stop_token_ids, params.all_stop_token_ids) == ([9], [7, 8, 9])


def test_an_end_of_sequence_beyond_the_vocabulary_is_none() -> None:
    """A model made small by overrides keeps the ids of the large one."""
    config = ModelConfig("tiny", architecture={"vocab_size": 5000, "eos_token_id": [-1, 1, 128_001]}, generation_config="none")
    model = read_model(config)
    assert input_processor(config, model).eos_token_ids == {1}


@pytest.mark.parametrize("eos", ["</s>", [1, None], True])
def test_an_end_of_sequence_that_is_no_token_id_is_refused(eos: object) -> None:
    with pytest.raises(ValueError, match=r"eos_token_id=.* must be a token id or a list of them"):
        read_model(ModelConfig("tiny", architecture={"eos_token_id": eos}, generation_config="none"))


def test_more_logprobs_than_the_engine_gives_are_refused() -> None:
    for asked in (21, -1):
        for name in ("logprobs", "prompt_logprobs"):
            with pytest.raises(ValueError, match=f"{name}={asked}.* more than the 20"):
                ids_only().params(SamplingParams(**{name: asked}))
    assert ids_only().params(SamplingParams(logprobs=20, prompt_logprobs=0)).logprobs == 20
    assert ids_only(max_logprobs=-1).params(SamplingParams(logprobs=-1)).logprobs == -1
    with pytest.raises(ValueError, match="more than the 3"):
        ids_only(max_logprobs=3).params(SamplingParams(logprobs=4))


def test_more_logprobs_than_tokens_are_refused() -> None:
    engine = make_engine(vocab_size=15)
    for name in ("logprobs", "prompt_logprobs"):
        with pytest.raises(ValueError, match=f"{name}=16, but the model has 15 tokens"):
            engine.add_request("r", [1], SamplingParams(**{name: 16}))
    assert_idle(engine)


def test_an_engine_without_a_tokenizer_serves_ids() -> None:
    assert not ids_only().params(SamplingParams()).detokenize
    assert not ids_only().params(None).detokenize
    for given in ({"stop": "x"}, {"bad_words": ["x"]}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} needs a tokenizer"):
            ids_only().params(SamplingParams(**given))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tokenizer"):
        ids_only().prompt("text")
