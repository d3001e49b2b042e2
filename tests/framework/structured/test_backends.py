"""What each library allows, seen through masks."""

from __future__ import annotations

import functools
import json
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.structured.backends.protocol import MAX_WHITESPACE, Grammar, Matcher
from framework.structured.schema import close_objects, first_inexact
from framework.structured.spec import StructuredOutputsParams

from .vocabularies import EOS, PIECES, SIZE, TOKENIZER, accept, accepts, allowed, backend, grammar, masks, token_sets

BOTH = pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
OPEN = {"type": "object", "properties": {"x": {"type": "integer"}}}


@BOTH
def test_outputs_are_those_of_the_constraint(name: str) -> None:
    for constraint, good, bad in (
        ({"regex": "[0-9]{3}-x+"}, ["123-x", "000-xxxx"], ["", "123-", "1234-x", "123-xy", " 123-x"]),
        ({"regex": "^ab$"}, ["ab"], ["a", "^ab$"]),
        ({"regex": "(a+)+b"}, ["ab", "aaaaaaaab"], ["b", "aa"]),
        ({"regex": "a/b"}, ["a/b"], ["ab"]),
        ({"choice": ["yes", "no\n", 'a "b" \\ 😀']}, ["yes", "no\n", 'a "b" \\ 😀'], ["ye", "no"]),
        ({"json": POINT}, ['{"x": 1}', '{"x":1,"y": -2 }', '{\n  "x": 1,\n  "y": 2\n}'], ["{}", '{"x": 1.5}', '{"x": 1, "z": 1}']),
        ({"json": POINT, "disable_any_whitespace": True}, ['{"x":1,"y":2}'], ['{"x": 1}', '{ "x":1}']),
        ({"json": POINT}, ["{" + " " * MAX_WHITESPACE + '"x":1}'], ["{" + " " * (MAX_WHITESPACE + 1) + '"x":1}']),
        ({"json": OPEN}, ['{"x":1,"z":2}'] if name == "llguidance" else ['{"x":1}'], []),  # xgrammar closes all objects
        ({"json": OPEN, "disable_additional_properties": True}, ['{"x":1}'], ['{"x":1,"z":2}']),
        ({"json_object": True}, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", '"a"', '{"a": }']),
        ({"json": True}, ["[1]", "null"], ["nul", "a"]),
        ({"grammar": 'root ::= "a" root | "b"'}, ["b", "aaab"], ["a", ""]),
        ({"grammar": 'start: "a" start | "b"'}, ["b", "aaab"], ["a", ""]),
    ):
        found = grammar(name, **constraint)
        assert [text for text in good if not accepts(found, text)] == [], (constraint, name)
        assert [text for text in bad if accepts(found, text)] == [], (constraint, name)


@BOTH
def test_special_tokens_and_padding_are_never_allowed(name: str) -> None:
    """The model has 100 logits more than the tokenizer tokens."""
    matcher = grammar(name, SIZE + 100, regex="(.|\n)*").matcher([EOS])
    found = allowed(matcher, -(-(SIZE + 100) // 32))
    assert 0 not in allowed(grammar(name, regex="<.bos.>").matcher([EOS])), "a special token is no text"
    assert max(found) < SIZE and found & set(TOKENIZER.all_special_ids) == {EOS} and len(found) > 1500


@BOTH
def test_a_model_may_have_fewer_tokens_than_its_tokenizer(name: str) -> None:
    size = 2000
    matcher = grammar(name, size, regex="[a-z ]*").matcher([EOS])
    bits = {token for token in allowed(matcher) if token < size}
    expected = {token for token in range(3, size) if re.fullmatch(rb"[a-z ]+", PIECES[token])} | {EOS}
    assert bits == expected


@BOTH
def test_stop_tokens_end_an_output_and_are_no_part_of_it(name: str) -> None:
    """Token 'a' is a stop token of one request, and a letter like others for another one."""
    found = grammar(name, regex="[ab]{2}")
    (a,), (b,) = (TOKENIZER.encode(text, add_special_tokens=False) for text in "ab")
    plain, stopping = found.matcher([EOS]), found.matcher([EOS, a])
    assert a in allowed(plain) and a not in allowed(stopping) and EOS not in allowed(plain) | allowed(stopping)
    for _ in range(2):
        accept(plain, b)
        accept(stopping, b)
    assert allowed(plain) == {EOS} and allowed(stopping) == {EOS, a}


@BOTH
def test_a_token_that_does_not_fit_is_told(name: str) -> None:
    matcher = grammar(name, regex="ab").matcher([EOS])
    with pytest.raises(RuntimeError, match="the grammar failed"):
        accept(matcher, *TOKENIZER.encode("z", add_special_tokens=False))


@pytest.mark.parametrize(
    "name, constraint, words",
    [
        ("llguidance", {"regex": "a(?=b)"}, "look-around"),
        ("xgrammar", {"regex": "a(?=b)"}, "(?i)look"),
        ("llguidance", {"regex": r"(a)\1"}, "backreferences"),
        ("xgrammar", {"regex": r"(a)\1"}, "(?i)back"),
        ("xgrammar", {"regex": r"a\b"}, "boundar"),
        ("llguidance", {"regex": "["}, "unclosed"),
        ("xgrammar", {"regex": "["}, "regex"),
        ("llguidance", {"grammar": "start: b"}, "unknown name"),
        ("xgrammar", {"grammar": "root ::= b"}, "b"),
        ("llguidance", {"structural_tag": {"format": {}}}, "llguidance has no structural_tag"),
        ("xgrammar", {"structural_tag": {"format": {}}}, "structural_tag"),
        ("llguidance", {"json": {"type": "object", "not": {}}}, '"not"'),
        ("llguidance", {"json": {"x-guidance": {"lenient": True}, "not": {}}}, '"not"'),
        ("llguidance", {"json": {"type": "integer", "minimum": 3, "maximum": 1}}, "minimum"),
        ("xgrammar", {"json": {"type": "integer", "minimum": 3, "maximum": 1}}, "minimum"),
        ("xgrammar", {"json": {"type": "integer", "multipleOf": 3}}, "'multipleOf'"),
        ("xgrammar", {"json": {"minimum": 3}}, "'minimum' without 'type'"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(name: str, constraint: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grammar(name, **constraint)


NUMBER = {"begin": "<f>", "content": {"type": "json_schema", "json_schema": {"type": "integer"}}, "end": "</f>"}


@pytest.mark.parametrize(
    "tag",
    [
        {"format": {"type": "triggered_tags", "triggers": ["<f"], "tags": [NUMBER]}},
        {"structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f"]},
    ],
    ids=["format", "structures"],
)
def test_structural_tags_leave_other_text_free(tag: dict[str, Any]) -> None:
    found = grammar("xgrammar", structural_tag={"type": "structural_tag", **tag})
    assert accepts(found, "text <f>12</f> more") and accepts(found, "text") and not accepts(found, "text <f>x</f>")


def test_schemas_that_xgrammar_cannot_do_exactly_are_known() -> None:
    closed = {"properties": {"a": {}}, "type": "object", "additionalProperties": False}
    for schema in (
        True,
        {},
        {"type": "string", "maxLength": 3},
        closed,
        {"anyOf": [closed, {"type": "null"}]},
        {"$ref": "#/$defs/a"},
    ):
        assert first_inexact(schema) is None
    for schema, named in (
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, "additionalProperties"),
        ({**closed, "required": ["b"]}, "required"),
        ({"type": "array", "items": {"type": "string", "pattern": "a"}}, "pattern"),
        ({"anyOf": [{"type": "string"}], "type": "string"}, "type"),
        ({"$ref": "#/a~1b"}, r"\$ref"),
        ({"const": {}}, "const"),
        ({"type": ["string", "null"]}, "type"),
        ({"$defs": {"a": {"not": {}}}}, "not"),
    ):
        assert re.search(named, first_inexact(schema) or "")
    given = {
        "properties": {"a": {"properties": {}}, "b": {"additionalProperties": {"properties": {}}}},
        "const": {"properties": {}},
    }
    assert json.dumps(close_objects(given)).count("false") == 3


@BOTH
def test_numbers_keep_their_bounds(name: str) -> None:
    for schema, low, high in (
        ({"type": "integer", "minimum": -3, "maximum": 12}, -3, 12),
        ({"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 1001}, 100, 1000),
    ):
        found = grammar(name, json=schema)
        for value in (low - 1, low, (low + high) // 2, high, high + 1, 10 * high):
            assert accepts(found, str(value)) == (low <= value <= high), (schema, value)


DRAFTED = [
    {"regex": "[a-z ]{2,8}-?[0-9]{0,3}"},
    {"json": POINT},
    {"grammar": 'root ::= "(" root ")" | [a-z]+'},
    {"choice": ["yes", "no", "never"]},
]


@functools.cache
def drafted(name: str) -> list[Grammar]:
    one = backend(name)
    return [one.compile(StructuredOutputsParams(**given).spec()) for given in DRAFTED]  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("characters", ["[a-z]", "[a-z ]", "[b-z ]", "[a-z0-9 ,.]", "[^a]"])
def test_masks_of_counted_characters_are_the_tokens_of_such_characters(name: str, characters: str) -> None:
    """Among them words, which are looked at all at once where all of them fit."""
    matcher, left = grammar(name, regex=characters + "{24}").matcher([EOS]), 24
    texts = {
        token: piece.decode("utf-8", "replace")
        for token, piece in enumerate(PIECES)
        if piece and token not in TOKENIZER.all_special_ids
    }
    whole = {token: text for token, text in texts.items() if "\ufffd" not in text}
    while left:
        fits = {token for token, text in whole.items() if re.fullmatch(f"{characters}{{1,{left}}}", text, re.DOTALL)}
        assert allowed(matcher) & whole.keys() == fits
        longest = max(fits, key=lambda token: (len(whole[token]), token))
        accept(matcher, longest)
        left -= len(whole[longest])


def walk(data: st.DataObject, matcher: Matcher, most: int, stops: list[int]) -> tuple[list[int], list[set[int]]]:
    """Tokens of which any may be one that does not fit, and the masks before, between and after them as far as they do: they are
    taken one by one, but for one that ends the output."""
    tokens: list[int] = []
    sets = [allowed(matcher)]
    for _ in range(data.draw(st.integers(0, most))):
        fits = data.draw(st.integers(0, 5)) > 0
        token = data.draw(st.sampled_from(sorted(sets[-1])) if fits else st.integers(0, SIZE - 1))
        if len(sets) == len(tokens) + 1 and token in sets[-1] and token not in stops:
            accept(matcher, token)
            sets.append(allowed(matcher))
        tokens.append(token)
    return tokens, sets


@BOTH
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_masks_after_drafts_are_those_of_tokens_taken_one_by_one(name: str, data: st.DataObject) -> None:
    """Of several matchers at once, each somewhere in its output."""
    (a,) = TOKENIZER.encode("a", add_special_tokens=False)
    matchers, drafts, expected = [], [], []
    for found in data.draw(st.lists(st.sampled_from(drafted(name)), min_size=1, max_size=4)):
        stops = data.draw(st.sampled_from([[EOS], [EOS, a]]))
        single, matcher = found.matcher(stops), found.matcher(stops)
        before, sets = walk(data, single, 4, stops)
        accept(matcher, *before[: len(sets) - 1])
        draft, sets = walk(data, single, 5, stops)
        matchers.append(matcher)
        drafts.append(draft)
        expected.append(sets)
    unknown = [[set(range(SIZE))] * (1 + len(draft) - len(sets)) for draft, sets in zip(drafts, expected)]
    for is_short in (False, True):
        rows = np.full((sum(1 + len(draft) for draft in drafts), SIZE // 32), -1, dtype=np.int32)
        matchers[0].backend.fill(matchers, drafts, rows, is_short)
        assert token_sets(rows) == [each for sets, rest in zip(expected, unknown) for each in sets + rest]
    # None of them was taken: those that are accepted are.
    counts = [data.draw(st.integers(0, len(sets) - 1)) for sets in expected]
    matchers[0].backend.accept(matchers, [draft[:count] for draft, count in zip(drafts, counts)])
    assert [allowed(matcher) for matcher in matchers] == [sets[count] for sets, count in zip(expected, counts)]


@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize(
    ("constraint", "limit"),
    [
        ({"grammar": "start: a{0,100}\na: b{0,100}\nb: c{0,100}\nc: /[a-z]/{0,100}\n"}, "items"),
        ({"grammar": "start: s\ns: s s s | s s | /[a-z]/ | \n"}, "items"),
        ({"regex": "((([a-z]{0,100}){0,100}){0,100}){0,100}"}, "too many expressions"),
        ({"regex": "(" + "|".join(f"[a-z]*{chr(97 + i)}[a-z]{{{i}}}" for i in range(16)) + ")*"}, "too many"),
    ],
)
def test_hostile_grammars_end_at_a_limit_of_llguidance(constraint: dict[str, Any], limit: str, is_short: bool) -> None:
    """Before a token of theirs takes long: here a few times 0.1 s are allowed, because the machine may be slow."""
    matcher = grammar("llguidance", **constraint).matcher([EOS])
    rng, most_s = np.random.default_rng(0), 0.0
    with pytest.raises(ValueError, match=limit):
        for _ in range(400):
            token = int(rng.choice(sorted(token_sets(masks(matcher, is_short=is_short))[0] - {EOS})))
            began_s = time.thread_time()
            accept(matcher, token)
            masks(matcher, is_short=is_short)
            most_s = max(most_s, time.thread_time() - began_s)
    assert most_s < 0.6
