"""Streams to tokens, at times that the test gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from framework.study.load.answer import MAX_EVENT_BYTES, Answer, BadAnswer, Tokens, message_of

from .stub_server import END, chunk, event


def read(*parts: bytes, count_tokens: Any = None) -> tuple[Tokens, Answer]:
    """Part i comes at i seconds."""
    answer = Answer()
    for time_s, part in enumerate(parts):
        answer.feed(part, time_s)
    answer.close(len(parts))
    return answer.tokens(count_tokens), answer


def text(words: str, finish_reason: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"text": words, "finish_reason": finish_reason}], **fields)


def usage(completion: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 5, "completion_tokens": completion}}


def test_a_chunk_of_several_tokens_is_several_tokens_and_one_chunk() -> None:
    tokens, answer = read(chunk([7]), chunk([8, 9, 10]), chunk([], None), chunk([11, 12], "length"), END)
    assert list(tokens.times_s) == [0, 1, 1, 1, 3, 3]
    assert list(tokens.chunk_times_s) == [0, 1, 3]
    assert (tokens.counted_by, list(answer.token_ids)) == ("token_ids", [7, 8, 9, 10, 11, 12])
    assert (answer.finish_reason, answer.is_done, answer.num_tokens) == ("length", True, None)


def test_a_token_without_text_is_one() -> None:
    tokens, _ = read(event(choices=[{"text": "", "token_ids": [3], "finish_reason": None}]), chunk([4], "stop"))
    assert list(tokens.times_s) == [0, 1]


def test_the_stream_may_be_cut_anywhere() -> None:
    whole = b": comment\r\n\r\n" + chunk([1, 2]).replace(b"\n", b"\r\n") + text("\u00e9\u4e16") + chunk([3], "stop") + END
    for cut in range(len(whole)):
        answer = Answer()
        answer.feed(whole[:cut], 1.0)
        answer.feed(whole[cut:], 1.0)
        answer.close(1.0)
        assert list(answer.token_ids) == [1, 2, 3] and answer.texts == ["xx", "\u00e9\u4e16", "x"], cut


def test_an_event_of_several_lines_and_one_without_its_end() -> None:
    data = json.dumps({"choices": [{"text": "a", "finish_reason": "stop"}]}, indent=1)
    tokens, _ = read(b"event: x\nid: 1\n" + b"".join(b"data: " + line.encode() + b"\n" for line in data.split("\n")))
    assert list(tokens.times_s) == [1]  # known to be whole when the stream ends


def test_the_running_count_of_a_server_that_sends_it_with_every_chunk() -> None:
    tokens, _ = read(text("ab", **usage(2)), text("c", **usage(3)), text("", "stop", **usage(3)))
    assert (list(tokens.times_s), tokens.counted_by) == ([0, 0, 1], "usage")


def test_a_final_count_on_the_last_chunk_is_no_running_count() -> None:
    tokens, answer = read(text("a"), text("b"), text("c"), text("", "stop", **usage(3)))
    assert (list(tokens.times_s), tokens.counted_by, answer.prompt_tokens) == ([0, 1, 2], "usage", 5)


def test_without_counts_the_text_is_tokenized() -> None:
    tokens, _ = read(text("aa"), text("b"), text("cc", "stop"), count_tokens=len)
    assert (list(tokens.times_s), tokens.counted_by) == ([0, 0, 1, 2, 2], "text")


def test_tokenized_text_is_brought_to_the_final_count() -> None:
    # 2 + 1 + 1 tokens by the text, 8 by the server: 4, 2, 2.
    tokens, _ = read(text("aa"), text("b"), text("c", "stop"), event(choices=[], **usage(8)), count_tokens=len)
    assert list(tokens.times_s) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert list(tokens.chunk_times_s) == [0, 1, 2]


def test_log_probabilities_count() -> None:
    completions = event(choices=[{"text": "ab", "logprobs": {"tokens": ["a", "b"]}, "finish_reason": None}])
    chat = event(choices=[{"delta": {"content": "c"}, "logprobs": {"content": [{"token": "c"}]}, "finish_reason": "stop"}])
    tokens, _ = read(completions, chat)
    assert (list(tokens.times_s), tokens.counted_by) == ([0, 0, 1], "logprobs")


def test_with_nothing_to_go_by_a_chunk_is_a_token() -> None:
    tokens, _ = read(text("aa"), text("b", "stop"))
    assert (list(tokens.times_s), tokens.counted_by) == ([0, 1], "chunks")


def test_the_role_of_a_chat_is_no_token_and_its_reasoning_is() -> None:
    def delta(finish_reason: str | None = None, **fields: str) -> bytes:
        return event(choices=[{"delta": fields, "finish_reason": finish_reason}])

    tokens, _ = read(delta(role="assistant", content=""), delta(reasoning_content="hm"), delta(content="a"), delta("stop"))
    assert list(tokens.times_s) == [1, 2]


def test_tokens_that_have_no_text_at_all_came_at_the_end() -> None:
    tokens, _ = read(text(""), text("", "length"), event(choices=[], **usage(2)))
    assert list(tokens.times_s) == [1, 1]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (b"data: {not json}\n\n", "malformed event"),
        (b"data: 7\n\n", "malformed event"),
        (b"data: []\n\n", "malformed event"),
        (b"data: {}\n\n", "malformed event"),
        (b"data: \xff\xfe\n\n", "malformed event"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "malformed event"),
        (b'data: {"choices": [{"text": 5}]}\n\n', "malformed event"),
        (b'data: {"choices": [{"token_ids": [99999999999999999999]}]}\n\n', "malformed event"),
        (b'data: {"choices": [{"token_ids": ["a"]}]}\n\n', "malformed event"),
        (b'data: {"choices": {"a": 1}}\n\n', "malformed event"),
        (text("a", **usage(10**18)), "malformed event"),
        (text("a", **usage(-1)), "malformed event"),
        (b"data: " + b"x" * MAX_EVENT_BYTES, "an event of more than 4194304 bytes"),
        (event(error={"message": "out of luck", "code": 500}), "the server reported an error: out of luck"),
        (chunk([1]), "the stream ended before the answer did"),
        (b"", "the stream ended before the answer did"),
        (b"<html></html>", "the stream ended before the answer did"),
        (END, "the stream brought no token"),
    ],
    ids=str,
)
def test_what_is_no_answer_is_told_with_its_reason(part: bytes, reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        read(part)


@pytest.mark.parametrize(
    "body", [{"error": {"message": "no"}}, {"error": "no"}, {"message": "no"}, {"detail": "no"}, "no"], ids=str
)
def test_the_usual_forms_of_an_error(body: Any) -> None:
    assert message_of(body) == "no"


def test_reasoning_under_both_of_its_names_counts_once() -> None:
    def delta(**fields: Any) -> bytes:
        return event(choices=[{"delta": fields, "finish_reason": None}])

    _, answer = read(delta(reasoning="hm", reasoning_content="hm"), delta(content="a"), END)
    assert answer.texts == ["hm", "a"]
