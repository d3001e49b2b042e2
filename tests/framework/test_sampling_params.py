"""Fields, defaults and ranges of SamplingParams."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.sampling_params import RequestOutputKind, SamplingParams


def test_defaults() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.ignore_eos) == (16, 0, None, False)
    assert (params.logprobs, params.prompt_logprobs, params.stop, params.stop_token_ids) == (None, None, [], [])
    assert params.detokenize and params.skip_special_tokens and params.spaces_between_special_tokens
    assert not params.include_stop_str_in_output and params.output_kind is RequestOutputKind.CUMULATIVE
    assert not params.greedy and params.skip_reading_prefix_cache is False


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n", [0, -1, 1.5, True, "2", 16385, None]),
        ("presence_penalty", [-2.1, 2.1, float("nan"), "1"]),
        ("frequency_penalty", [-2.1, 2.1, float("inf")]),
        ("repetition_penalty", [0, -1.0, float("nan"), float("inf"), 1e39, 10**400, 1e-39, True]),
        ("temperature", [-0.1, 2.1, float("nan"), None, np.bool_(True)]),
        ("top_p", [0, -0.5, 1.01]),
        ("top_k", [-2, 1.5, 2**31, None]),
        ("min_p", [-0.1, 1.1]),
        ("seed", [1.5, "x", 2**64, -(2**63) - 1, True]),
        ("ignore_eos", [None, 1, "yes"]),
        ("detokenize", [0]),
        ("skip_special_tokens", ["no"]),
        ("spaces_between_special_tokens", [2]),
        ("include_stop_str_in_output", [[]]),
        ("skip_reading_prefix_cache", [1, "x"]),
        ("max_tokens", [0, -3, 2.5]),
        ("min_tokens", [-1, 17, None]),
        ("logprobs", [-2, 1.5, 2**31]),
        ("prompt_logprobs", [-2, True, 2**31]),
        ("stop", ["", ["a", ""], [1], 5, b"end", {"a": 1}, False]),
        ("stop_token_ids", [[-1], ["a"], [1.5], [True], b"ab", 0, 7, {3: 4}]),
        ("allowed_token_ids", [[], [-1], [False], b"ab", 5, np.array(5)]),
        ("bad_words", [[""], ["  "], [1], "abc", b"abc", 5, {"a": 1}, ["\ud800"]]),
        ("logit_bias", [{"a": 1.0}, {-1: 1.0}, {1: float("nan")}, [1], {1.7: 1.0}, {True: 1.0}, {1: True}, {1: "2"}, {b"5": 1.0}]),
        ("output_kind", ["DELTA", 1]),
        ("extra_args", [{}]),
        ("flat_logprobs", [True]),
        ("thinking_token_budget", [0, 5]),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"SamplingParams: {name}="):
            SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "given",
    [
        {"presence_penalty": -2},
        {"frequency_penalty": 2},
        {"temperature": 2},
        {"top_p": 1},
        {"top_k": -1},
        {"top_k": 2**31 - 1},
        {"repetition_penalty": 3.4e38},
        {"repetition_penalty": 1.2e-38},
        {"n": 16384},
        {"min_p": 1},
        {"seed": 2**64 - 1},
        {"seed": -(2**63)},
        {"max_tokens": 10**30},
        {"max_tokens": None, "min_tokens": 1000},
        {"logprobs": -1},
        {"prompt_logprobs": 0},
        {"logit_bias": {"5": 1}},
        {"logit_bias": {5: float("inf"), 6: 10**400}},
    ],
)
def test_the_borders_are_allowed(given: dict[str, Any]) -> None:
    SamplingParams(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 2**31),
        ("repetition_penalty", 1e39),
        ("n", "2"),
        ("stop", 5),
        ("max_tokens", 0),
        ("seed", 2**70),
        ("bad_words_token_ids", "ab"),
        ("bad_words_token_ids", [[]]),
    ],
)
def test_fields_changed_later_are_checked_again(name: str, value: Any) -> None:
    params = SamplingParams()
    setattr(params, name, value)
    with pytest.raises(ValueError, match=f"SamplingParams: {name}="):
        params.validate()


def test_numbers_of_numpy_become_pythons() -> None:
    params = SamplingParams(
        top_k=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        stop_token_ids=np.array([3, 4]),  # type: ignore[arg-type]
        allowed_token_ids={np.int32(6)},  # type: ignore[arg-type]
        logit_bias={np.int64(7): np.float64(1)},
    )
    values = [params.top_k, params.temperature, params.seed, *params.stop_token_ids, *params.allowed_token_ids, *params.logit_bias]
    assert [type(value) for value in values] == [int, float, int, int, int, int, int]
    assert values == [5, 0.5, 2**64 - 1, 3, 4, 6, 7] and params.logit_bias == {7: 1.0}


def test_none_stands_for_a_default_where_asked_for() -> None:
    given = {"n": None, "temperature": None, "top_k": None, "seed": 3, "stop": None, "detokenize": None, "logit_bias": {"4": 1}}
    assert SamplingParams.from_optional(**given) == SamplingParams(seed=3, logit_bias={4: 1.0})
    assert SamplingParams.from_optional(max_tokens=None).max_tokens is None
    assert SamplingParams.from_optional().max_tokens == 16


def test_a_clone_shares_nothing() -> None:
    params = SamplingParams(stop=["a"], bad_words=["b"], logit_bias={1: 2.0}, stop_token_ids=[3])
    clone = params.clone()
    assert clone == params
    for name in ("stop", "bad_words", "logit_bias", "stop_token_ids"):
        assert getattr(clone, name) is not getattr(params, name)


@pytest.mark.parametrize("skip", [None, False, True])
def test_prompt_logprobs_need_the_whole_prompt_computed(skip: bool | None) -> None:
    assert SamplingParams(prompt_logprobs=1, skip_reading_prefix_cache=skip).skip_reading_prefix_cache is True
    assert SamplingParams(skip_reading_prefix_cache=skip).skip_reading_prefix_cache is bool(skip)


def test_small_temperatures_are_raised() -> None:
    assert SamplingParams(temperature=1e-6).temperature == 0.01
    assert not SamplingParams(temperature=1e-6).greedy


def test_greedy_turns_the_filters_off() -> None:
    params = SamplingParams(temperature=0, top_p=0.5, top_k=3, min_p=0.1)
    assert params.greedy and (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)
    with pytest.raises(ValueError, match="greedy completions would all be the same"):
        SamplingParams(temperature=0, n=2)


def test_values_are_brought_into_one_form() -> None:
    params = SamplingParams(stop="end", seed=-1, logit_bias={"7": 1000, 8: -1000}, prompt_logprobs=1, stop_token_ids=[4])
    assert params.stop == ["end"] and params.seed is None and params.logit_bias == {7: 100.0, 8: -100.0}
    assert params.skip_reading_prefix_cache and params.all_stop_token_ids == [4]


def test_stop_strings_need_text() -> None:
    with pytest.raises(ValueError, match="detokenize=False"):
        SamplingParams(stop="x", detokenize=False)


def test_copies_replacements_and_pickles() -> None:
    params = SamplingParams(stop=["a"], temperature=0.5, seed=3)
    assert copy.deepcopy(params) == params == pickle.loads(pickle.dumps(params))
    assert replace(params, output_kind=RequestOutputKind.DELTA).stop == ["a"]
