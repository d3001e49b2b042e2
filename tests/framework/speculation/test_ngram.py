"""Prompt lookup against a search through the whole text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.speculation.config import SpeculativeConfig
from framework.speculation.ngram import Ngram


def searched(text: list[int], least: int, most: int, rightmost: bool, count: int) -> list[int]:
    """By trying every length and every place."""
    for length in range(min(most, len(text) - 1), least - 1, -1):
        places = [i for i in range(len(text) - length) if text[i : i + length] == text[-length:]]
        if places:
            end = (places[-1] if rightmost else places[0]) + length
            return text[end : end + count]
    return []


@given(
    text=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    least=st.integers(1, 3),
    more=st.integers(0, 3),
    rightmost=st.booleans(),
    count=st.integers(0, 5),
    cuts=st.lists(st.integers(1, 40)),
)
def test_it_finds_what_a_search_finds(text: list[int], least: int, more: int, rightmost: bool, count: int, cuts: list[int]) -> None:
    match = "rightmost" if rightmost else "leftmost"
    config = SpeculativeConfig("ngram", 5, prompt_lookup_min=least, prompt_lookup_max=least + more, prompt_lookup_match=match)
    proposer = Ngram(config)
    proposer.start("a", text[:1])
    for cut in sorted({*(cut for cut in cuts if cut < len(text)), len(text)}):
        assert proposer.propose("a", text[:cut], count) == searched(text[:cut], least, least + more, rightmost, count)


def test_requests_do_not_see_each_other() -> None:
    proposer = Ngram(SpeculativeConfig("ngram", 3, prompt_lookup_max=2))
    proposer.start("a", [1, 2, 3, 1, 2])
    proposer.start("b", [7, 1, 2])
    assert proposer.propose("a", [1, 2, 3, 1, 2], 3) == [3, 1, 2]
    assert proposer.propose("b", [7, 1, 2], 3) == []
    proposer.stop("a")
    proposer.start("a", [5, 1, 2])
    assert proposer.propose("a", [5, 1, 2], 3) == []


@pytest.mark.parametrize("match", ["leftmost", "rightmost"])
def test_the_length_of_the_text_does_not_matter_for_a_call(match: str) -> None:
    """Twice as many calls on texts twice as long take about twice the time, not four times."""
    proposer = Ngram(SpeculativeConfig("ngram", 3, prompt_lookup_min=2, prompt_lookup_match=match))

    def taken_s(num_tokens: int) -> float:
        text = [i % 7 for i in range(num_tokens)]
        times = []
        for run in range(3):
            proposer.start(f"{run}", text)
            known = text[:1]
            started_s = time.process_time()
            for token in text[1:]:
                known.append(token)
                proposer.propose(f"{run}", known, 3)
            times.append(time.process_time() - started_s)
        return min(times)

    assert taken_s(32_000) < 3 * taken_s(16_000)
