"""Text token by token equals the text of all tokens at once, in every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from framework.engine.detokenizer import ByteLevelDetokenizer, StopStrings, TokenTexts, WindowDetokenizer
from framework.engine.tokenizer import load_tokenizer

TINY = Path(__file__).parents[3] / "framework" / "assets" / "tiny"
TEXT = "def größe(x):  # 测试 🙂🏳️‍🌈\n    return x.\u0301\ufffd <|eos|> end"


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def byte_level_with_added_tokens() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["plain é", " two words"])
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True), AddedToken("<é>", special=True)])
    return wrapped(tokenizer)


@pytest.fixture(scope="module")
def sentencepiece_like() -> Any:
    """Spaces as U+2581, unknown characters as bytes, the first space dropped: what Llama 2 and Gemma do."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁a", "b", "c", "é", "▁b"]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return wrapped(tokenizer)


@pytest.fixture(scope="module")
def texts_of(byte_level: Any, byte_level_with_added_tokens: Any, sentencepiece_like: Any) -> Callable[[str], TokenTexts]:
    """The token texts of the tokenizers above, by name."""
    named = {
        "byte_level": byte_level,
        "byte_level_with_added_tokens": byte_level_with_added_tokens,
        "sentencepiece_like": sentencepiece_like,
    }
    return {name: TokenTexts(tokenizer) for name, tokenizer in named.items()}.__getitem__


def piecewise(texts: TokenTexts, ids: list[int], skip: bool) -> str:
    detokenizer = texts.detokenizer(skip)
    return "".join([detokenizer.push(token) for token in ids]) + detokenizer.flush()


def whole(tokenizer: Any, ids: list[int], skip: bool) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", ["byte_level", "byte_level_with_added_tokens", "sentencepiece_like"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_pieces_equal_the_whole(request: pytest.FixtureRequest, name: str, skip: bool, data: st.DataObject) -> None:
    """Random tokens: broken characters and special tokens anywhere."""
    tokenizer, texts = request.getfixturevalue(name), request.getfixturevalue("texts_of")(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    if name == "sentencepiece_like" and whole(tokenizer, ids, skip).count("\ufffd"):
        return  # bytes that are no characters are replaced in runs of unlike length there
    assert piecewise(texts, ids, skip) == whole(tokenizer, ids, skip)


@pytest.mark.parametrize("name", ["byte_level", "byte_level_with_added_tokens", "sentencepiece_like"])
def test_characters_split_across_tokens(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    if name == "sentencepiece_like":
        ids = [3 + byte for byte in "größe 测试 🙂".encode()]
    detokenizer = TokenTexts(tokenizer).detokenizer()
    pieces = [detokenizer.push(token) for token in ids]
    assert "" in pieces, "no character was split: the test shows nothing"
    if name != "byte_level_with_added_tokens":
        assert not any("\ufffd" in piece for piece in pieces if piece != "\ufffd")
    assert "".join(pieces) + detokenizer.flush() == whole(tokenizer, ids, True)


def test_byte_level_tokenizers_use_the_table(byte_level: Any, sentencepiece_like: Any) -> None:
    assert isinstance(TokenTexts(byte_level).detokenizer(), ByteLevelDetokenizer)
    assert isinstance(TokenTexts(sentencepiece_like).detokenizer(), WindowDetokenizer)


def test_an_unfinished_character_comes_out_at_the_end(byte_level_with_added_tokens: Any) -> None:
    ids = byte_level_with_added_tokens.encode("é", add_special_tokens=False)
    detokenizer = TokenTexts(byte_level_with_added_tokens).detokenizer()
    assert len(ids) == 2 and detokenizer.push(ids[0]) == ""
    assert detokenizer.flush() == "\ufffd" and detokenizer.flush() == ""


def test_the_text_of_a_single_token(byte_level: Any, sentencepiece_like: Any) -> None:
    texts = TokenTexts(byte_level)
    assert texts.decoded_token(byte_level.eos_token_id) == "<|eos|>"
    assert texts.decoded_token(10**6) == "" and texts.detokenizer().push(10**6) == "", "padding of the vocabulary"
    assert TokenTexts(sentencepiece_like).decoded_token(262) == "b"


def stream(stops: StopStrings, pieces: list[str]) -> tuple[str, str | None, list[str]]:
    out: list[str] = []
    for piece in pieces:
        text, stop = stops.push(piece)
        out.append(text)
        if stop is not None:
            return "".join(out), stop, out
    return "".join([*out, stops.flush()]), None, out


def test_stop_strings_are_found_across_pieces() -> None:
    assert stream(StopStrings(["END"], False), list("textEND more"))[:2] == ("text", "END")
    assert stream(StopStrings(["END"], True), list("textEND more"))[:2] == ("textEND", "END")
    assert stream(StopStrings(["END"], True), ["textE", "ND more"])[:2] == ("textEND", "END")


def test_what_may_become_a_stop_string_is_held_back() -> None:
    assert stream(StopStrings(["END"], False), list("aENbEN"))[2] == ["", "", "a", "E", "N", "b"]
    assert stream(StopStrings(["END"], True), list("aEN"))[2] == ["a", "E", "N"]
    assert stream(StopStrings(["x"], False), list("ab"))[2] == ["a", "b"]


def test_the_stop_string_that_begins_first_wins_then_the_longest() -> None:
    assert stream(StopStrings(["cd", "bcd"], False), ["abcde"])[:2] == ("a", "bcd")
    assert stream(StopStrings(["ab", "abc"], False), ["abc"])[:2] == ("", "abc")


def test_text_before_min_tokens_does_not_stop_later() -> None:
    stops = StopStrings(["ab", "longer"], False)
    assert stops.push("ab", search=False) == ("", None)
    assert stops.push("c")[1] is None and stops.flush() == "abc"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.text("ab", max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=8),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    include=st.booleans(),
)
def test_stop_strings_against_a_search_in_the_text_so_far(text: str, cuts: list[int], stop: list[str], include: bool) -> None:
    borders = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    pieces = [text[a:b] for a, b in pairwise(borders)]
    expected, found = text, None
    for end in borders[1:]:
        hits = sorted((text[:end].find(s), -len(s), s) for s in stop if s in text[:end])
        if hits:
            expected, found = text[: hits[0][0] + len(hits[0][2]) * include], hits[0][2]
            break
    assert stream(StopStrings(stop, include), pieces)[:2] == (expected, found)
