"""Suffix decoding against counts over all texts, and on texts that come again."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.speculation.config import SpeculativeConfig
from framework.speculation.suffix import Suffix
from framework.speculation.suffix_tree import SuffixTree


class Counts:
    """What follows a run of tokens in some texts, by looking at every place."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts

    def after(self, run: list[int]) -> Counter[int]:
        found: Counter[int] = Counter()
        for text in self.texts:
            for i in range(len(text) - len(run)):
                if text[i : i + len(run)] == run:
                    found[text[i + len(run)]] += 1
        return found

    def score(self, end: list[int], depth: int, most: int, factor: float, min_probability: float) -> float:
        """Of the best drafts."""
        best = 0.0
        for length in range(1, min(len(end), depth - 1) + 1):
            run, score, probability = end[-length:], 0.0, 1.0
            for _ in range(min(most, int(length * factor), depth - length)):
                if not (found := self.after(run)):
                    break
                token, count = min(found.items(), key=lambda item: (-item[1], item[0]))
                probability *= count / found.total()
                if probability < min_probability:
                    break
                score += probability
                run = [*run, token]
            best = max(best, score)
        return best


texts = st.lists(st.lists(st.integers(0, 2), max_size=20), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    texts=texts,
    removed=st.sets(st.integers(0, 3)),
    own=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    depth=st.integers(2, 7),
    most=st.integers(1, 6),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
    min_probability=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_the_best_drafts_are_those_of_all_counts(
    texts: list[list[int]], removed: set[int], own: list[int], depth: int, most: int, factor: float, min_probability: float
) -> None:
    """In a tree of texts some of which were removed again, and in that of a text that grows."""
    limits = sorted(
        ((n, min(int(n * factor), depth - n)) for n in range(1, depth)), key=lambda pair: (pair[1], pair[0]), reverse=True
    )
    tree = SuffixTree(depth)
    for number, text in enumerate(texts):
        tree.add(number, text)
        if number - 1 in removed:
            tree.remove(number - 1)
    left = Counts([text for number, text in enumerate(texts) if number not in removed or number == len(texts) - 1])
    found = tree.drafts(own[1 - depth :], limits, most, min_probability)
    assert found.score == pytest.approx(left.score(own, depth, most, factor, min_probability))
    assert len(found.token_ids) <= most and found.score <= len(found.token_ids) + 1e-9

    growing = SuffixTree(depth)
    ends = growing.open(0)
    for length, token in enumerate(own, 1):
        ends = growing.append(0, token, ends)
        found = growing.drafts(own[:length][1 - depth :], limits, most, min_probability)
        assert found.score == pytest.approx(Counts([own[:length]]).score(own[:length], depth, most, factor, min_probability))


def test_nothing_is_left_of_texts_that_are_gone() -> None:
    tree = SuffixTree(5)
    for number in range(20):
        tree.add(number, [1, 2, 1, 2, number % 3, 1])
    for number in range(20):
        tree.remove(number)
    assert not tree.texts and not tree._root.children and not tree._root.followed


def suffix(**given: float) -> Suffix:
    return Suffix(SpeculativeConfig("suffix", 8, **{f"suffix_decoding_{name}": value for name, value in given.items()}))  # type: ignore[arg-type]


def test_the_better_of_both_trees_drafts() -> None:
    proposer = suffix()
    proposer.start("a", [9])
    proposer.stop("a", [9, 1, 2, 3, 4, 5, 6])
    proposer.start("b", [1, 2, 7, 1, 2])
    assert proposer.propose("b", [1, 2, 7, 1, 2], 8) == [7, 1], "of two that are as good, the request's own"
    assert proposer.propose("b", [1, 2, 7, 1, 2, 3], 8) == [4, 5, 6]
    assert proposer.propose("b", [1, 2, 7, 1, 2, 3], 2) == [4, 5]


def test_prompts_of_others_are_not_searched_and_old_outputs_give_way() -> None:
    proposer = suffix(max_cached_requests=2)
    for name, output in ("a", [1, 2]), ("b", [3, 4]), ("c", [5, 6]):
        proposer.start(name, [7, 8])
        proposer.propose(name, [7, 8, *output], 8)
        proposer.stop(name)
    for last, follows in (7, []), (1, []), (3, [4]), (5, [6]):
        proposer.start("d", [last])
        assert proposer.propose("d", [last], 8) == follows
        proposer.stop("d")
    none = suffix(max_cached_requests=0)
    none.start("a", [7])
    none.stop("a", [7, 1, 2])
    none.start("b", [1])
    assert none.propose("b", [1], 8) == []


def test_outputs_are_searched_for_those_of_the_same_salt_only() -> None:
    proposer, salted = suffix(max_cached_requests=3), (((0, b"salt:a"),), ((0, b"salt:b"),), ())

    def follows(last: int) -> list[list[int]]:
        found = []
        for keys in salted:
            proposer.start("d", [last], keys)
            found.append(proposer.propose("d", [last], 8))
            proposer.stop("d", [last])
        return found

    for number, keys in enumerate(salted):
        proposer.start("a", [9], keys)
        proposer.stop("a", [9, 1, 2 + number])
    assert follows(1) == [[2], [3], [4]]
    proposer.start("a", [9], salted[1])
    proposer.stop("a", [9, 5, 6])
    assert follows(1) == [[], [3], [4]], "the oldest of all gives way"
    assert follows(5) == [[], [6], []] and set(proposer._outputs) == set(salted[1:])


def test_drafts_are_as_many_and_as_likely_as_was_asked_for() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]

    def drafts(**given: float) -> list[int]:
        proposer = suffix(**given)
        proposer.start("a", text[:1])
        return proposer.propose("a", text, 8)

    assert drafts() == [5, 6, 7, 8] and drafts(max_spec_factor=0.5) == [5, 6] and drafts(max_spec_factor=2.0)[4:] == [9, 1, 2, 3]
    assert drafts(max_tree_depth=6) == [5, 6, 7] and drafts(max_tree_depth=5) == [5, 6]
    text = [1, 2, 7, 1, 2, 8, 1, 2, 9, 1, 2]
    assert drafts(min_token_prob=0.4) == [] and drafts(min_token_prob=0.3)[:1] == [7]


def served(proposer: Suffix, name: str, prompt: list[int], output: list[int], most: int) -> tuple[int, int]:
    """(drafts, accepted) of a request whose output is known, as an engine asks for it."""
    proposer.start(name, prompt)
    known, num_drafts, num_accepted = [*prompt, output[0]], 0, 0
    total = len(prompt) + len(output)
    whole = prompt + output
    while len(known) < total:
        drafts = proposer.propose(name, known, min(most, total - len(known) - 1))
        right = 0
        while right < len(drafts) and drafts[right] == whole[len(known) + right]:
            right += 1
        num_drafts, num_accepted = num_drafts + len(drafts), num_accepted + right
        known = whole[: len(known) + right + 1]
    proposer.stop(name, known)
    return num_drafts, num_accepted


def test_by_the_tenth_pass_over_the_same_prompts_drafts_are_right() -> None:
    """Outputs of which every hundredth token comes out otherwise each time."""
    words = re.findall(r"\w+|\W", Path(difflib.__file__).read_text(encoding="utf-8"))[:10_000]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    text, rng = [numbers[word] for word in words], np.random.default_rng(0)
    requests = [(text[i : i + 100], text[i + 100 : i + 400]) for i in range(0, 10_000, 500)]
    proposer, rates = suffix(), []
    for number in range(10):
        counts = []
        for i, (prompt, output) in enumerate(requests):
            other = [token if rng.random() > 0.01 else int(rng.integers(len(numbers))) for token in output]
            counts.append(served(proposer, f"{number}.{i}", prompt, other, 8))
        num_drafts, num_accepted = np.sum(counts, axis=0)
        rates.append(num_accepted / num_drafts)
    assert rates[0] < 0.6 and rates[-1] > 0.8, rates


def test_a_factor_beyond_all_floats_is_but_no_limit() -> None:
    config = SpeculativeConfig("suffix", 3, suffix_decoding_max_spec_factor=1e308)
    config.validate()
    proposer = Suffix(config)
    proposer.start("a", [1, 2, 3])
    assert proposer.propose("a", [1, 2, 3, 1, 2], 3) == [3, 1, 2]
