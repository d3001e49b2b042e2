"""Fields, defaults and ranges of SamplingParams."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

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
        ("n", [0, -1, 1.5, True, "2"]),
        ("presence_penalty", [-2.1, 2.1, float("nan"), "1"]),
        ("frequency_penalty", [-2.1, 2.1, float("inf")]),
        ("repetition_penalty", [0, -1.0, float("nan")]),
        ("temperature", [-0.1, 2.1, float("nan"), None]),
        ("top_p", [0, -0.5, 1.01]),
        ("top_k", [-2, 1.5]),
        ("min_p", [-0.1, 1.1]),
        ("seed", [1.5, "x"]),
        ("max_tokens", [0, -3, 2.5]),
        ("min_tokens", [-1, 17, None]),
        ("logprobs", [-2, 1.5]),
        ("prompt_logprobs", [-2, True]),
        ("stop", ["", ["a", ""], [1]]),
        ("stop_token_ids", [[-1], ["a"], [1.5]]),
        ("allowed_token_ids", [[], [-1]]),
        ("bad_words", [[""], ["  "], [1]]),
        ("logit_bias", [{"a": 1.0}, {-1: 1.0}, {1: float("nan")}, [1]]),
        ("output_kind", ["DELTA", 1]),
        ("structured_outputs", [{"json": "{}"}]),
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
        {"min_p": 1},
        {"seed": 2**63},
        {"max_tokens": None, "min_tokens": 1000},
        {"logprobs": -1},
        {"prompt_logprobs": 0},
        {"logit_bias": {"5": 1}},
    ],
)
def test_the_borders_are_allowed(given: dict[str, Any]) -> None:
    SamplingParams(**given)


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
