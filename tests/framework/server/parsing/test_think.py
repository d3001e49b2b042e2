"""Reasoning between think tags."""

from __future__ import annotations

import pytest

from framework.server.parsing import MessageParser
from framework.server.parsing.think import is_open

from .messages import Message, parse, tool_parser


@pytest.mark.parametrize(
    "text, opened, reasoning, content",
    [
        ("<think>\nHm.\n\nWell.\n</think>\n\nYes.\n", False, "Hm.\n\nWell.", "Yes.\n"),
        ("<think>\nHm.\n</think>Yes.", True, "Hm.", "Yes."),
        ("Hm.</think>Yes. <think>no</think>", True, "Hm.", "Yes. <think>no</think>"),
        ("<think></think>Yes.", False, "", "Yes."),
        ("Yes, <think> is a tag", False, "", "Yes, <think> is a tag"),
        (" <thi", False, "", " <thi"),
        ("Hm. </thin", True, "Hm. </thin", ""),  # cut at max_tokens
        ("", True, "", ""),
    ],
)
def test_reasoning(text: str, opened: bool, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        assert parse(MessageParser(opened=opened), pieces) == Message(content, reasoning)


def test_calls_come_after_the_reasoning() -> None:
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    found = parse(tool_parser("hermes", opened=False), f"<think>\n{call}\n</think>\n{call}")
    assert found == Message("", call, [("now", "{}")], ["call-0"])


@pytest.mark.parametrize(
    "prompt, implied, expected",
    [
        ("user: hi\n", False, False),
        ("user: hi\n", True, True),
        ("user: hi\n<think>\n", False, True),
        ("user: hi\n<think>\n\n</think>\n\n", True, False),  # the template switched it off
        ("<think>a</think>b user: again", True, True),
    ],
)
def test_whether_the_prompt_opens_reasoning(prompt: str, implied: bool, expected: bool) -> None:
    assert is_open(prompt, implied) is expected


@pytest.mark.parametrize(
    "tokens, opened, expected",
    [
        (["<think>", "a", "b", "</think>", "c", "d"], False, 4),
        (["a", "b", "</think>", "c"], True, 3),
        (["<thi", "nk>", "a", "</", "think>", "c"], False, 5),
        (["<thi", "s"], False, 0),
        (["a", "b"], False, 0),
        (["a", "b"], True, 2),
    ],
)
def test_tokens_of_the_reasoning_are_counted_with_its_tags(tokens: list[str], opened: bool, expected: int) -> None:
    parser = MessageParser(opened=opened)
    for token in tokens:
        parser.feed(token, 1)
    parser.finish()
    assert parser.num_reasoning_tokens == expected


def test_tokens_that_come_at_once_count_by_their_characters() -> None:
    for text, expected in (("<think>abc</think>" + "d" * 18, 10), ("<think>abc</think>", 20), ("abc", 0), ("<think>", 20)):
        parser = MessageParser(opened=False)
        parser.feed(text, 20)
        parser.finish()
        assert parser.num_reasoning_tokens == expected


def test_no_reasoning_is_looked_for_unless_asked() -> None:
    assert parse(MessageParser(), ["<think>a</think>b"]) == Message("<think>a</think>b")
