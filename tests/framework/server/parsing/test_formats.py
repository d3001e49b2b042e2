"""Messages as models write them, and what they are."""

from __future__ import annotations

import json

import pytest

from framework.server.parsing import MessageParser
from framework.server.parsing.forced import named, required

from .messages import Message, counted, parse, tool_parser

OSLO = ("get_weather", '{"city": "Oslo"}')
NOW = ("now", "{}")

HERMES = [
    ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>', "", [OSLO]),
    ('Let me look. \n<tool_call>{"arguments":{"city":"Oslo"},"name":"get_weather"}</tool_call>\n', "Let me look.", [OSLO]),
    (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "",
        [OSLO, NOW],
    ),
    ('<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>', "", [OSLO]),
    ('<tool_call>{"name": "now", "arguments": {}}', "", [NOW]),  # the closing tag was the stop
    ('<tool_call>{"name": "now", "arguments": {}}</tool_call> and then', "and then", [NOW]),
    (
        '<tool_call>{"name": "say", "arguments": {"text": "</tool_call> } \\" {"}}</tool_call>',
        "",
        [("say", '{"text": "</tool_call> } \\" {"}')],
    ),
    ('<tool_call>{"name": "say", "arguments": {"text": "a\nb"}}</tool_call>', "", [("say", '{"text": "a\\nb"}')]),
    ('<tool_call>{"name": "say", "arguments": {"text": "å\\u00e5"}}</tool_call>', "", [("say", '{"text": "åå"}')]),
    ('<tool_call>{"name": "say", "arguments": {"x": "\\ud800"}}</tool_call>', "", [("say", '{"x": "\\ud800"}')]),
]
LLAMA = [
    ('{"name": "get_weather", "parameters": {"city": "Oslo"}}', "", [OSLO]),
    ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "now", "parameters": {}}', "", [OSLO, NOW]),
    ('\n{"type": "function", "name": "now", "arguments": {}}\n{"name": "now", "parameters": {}}', "", [NOW, NOW]),
    ('{"name": "now", "parameters": {}} is what I call', "is what I call", [NOW]),
    ('{"temperature": 3, "unit": "C"}', '{"temperature": 3, "unit": "C"}', []),  # an answer in JSON
    ('Use {"name": "now", "parameters": {}}', 'Use {"name": "now", "parameters": {}}', []),
    ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
]
QWEN = [
    ("<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>", "", [OSLO]),
    ("I look.\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n", "I look.", [OSLO]),
    ("<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call><function=now></function></tool_call>", "", [NOW, NOW]),
    (
        "<tool_call><function=fill><parameter=count>3</parameter><parameter=share>0.5</parameter><parameter=on>True</parameter>"
        "<parameter=tags>\n[1, 2]\n</parameter><parameter=note>\n\n7\n</parameter><parameter=none>null</parameter>"
        '<parameter=point>{"x": 1}</parameter><parameter=count2>many</parameter><parameter=free>1</parameter></function>',
        "",
        [
            (
                "fill",
                '{"count": 3, "share": 0.5, "on": true, "tags": [1, 2], "note": "\\n7", "none": null, "point": {"x": 1}, '
                '"count2": "many", "free": "1"}',
            )
        ],
    ),
    (
        "<tool_call><function=say><parameter=text>\na < b\n<function=x>\n</parameter></function></tool_call>",
        "",
        [("say", '{"text": "a < b\\n<function=x>"}')],
    ),
    ("<function=fill><parameter=note>null</parameter></function>", "", [("fill", '{"note": "null"}')]),
]
SCHEMAS = {
    "fill": {
        "properties": {
            "count": {"type": "integer"},
            "count2": {"type": "integer"},
            "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "on": {"type": "boolean"},
            "tags": {"type": ["array", "null"]},
            "note": {"type": "string"},
            "none": {"type": ["string", "null"]},
            "point": {"$ref": "#/$defs/Point"},
        },
        "$defs": {"Point": {"type": "object"}},
    }
}
MALFORMED = {
    "hermes": [
        "<tool_call>",
        "<tool_call>{",
        "a <tool_call>now()</tool_call> b",
        '<tool_call>{"name": "now"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"city": "Os',
        '<tool_call>{"name": "f", "arguments": {}]</tool_call>',
        "</tool_call> x",
        " <tool_cal",
    ],
    "llama3_json": ['{"name": "f"', '{"name": "f"} ', "<|python_tag|>", " <|python", "{}", "", ' {"name": "f", "parameters": 3} '],
    "qwen3_coder": [
        "<tool_call>",
        "<tool_call>{}</tool_call> x",
        "<function=",
        "<function=>",
        "a <function=f",
        "<function=f\n><parameter=a>1</parameter></function>",
        "<function=f><parameter=a>1</function>",
        "<function=f><parameter=a>1</parameter>",
        "<function=f><parameter>1</parameter></function>",
        "<function=f>text</function>",
    ],
}
CASES = [(name, *case) for name, cases in (("hermes", HERMES), ("llama3_json", LLAMA), ("qwen3_coder", QWEN)) for case in cases]


@pytest.mark.parametrize("name, text, content, calls", CASES)
def test_messages_with_calls(name: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text)):
        found = parse(tool_parser(name, SCHEMAS), pieces)
        assert (found.content, found.calls) == (content, calls)
        assert found.ids == [f"call-{i}" for i in range(len(calls))]
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in found.calls)


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in MALFORMED.items() for text in texts])
def test_what_is_no_call_is_content_character_by_character(name: str, text: str) -> None:
    assert parse(tool_parser(name), [text]) == Message(text)
    assert parse(tool_parser(name), list(text)) == Message(text)


def test_a_good_call_among_bad_ones() -> None:
    good = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    found = parse(tool_parser("hermes"), [f'a <tool_call>bad</tool_call> {good} <tool_call>{{"name": "f"}}</tool_call>'])
    assert found.calls == [NOW]
    assert found.content == 'a <tool_call>bad</tool_call><tool_call>{"name": "f"}</tool_call>'


def test_one_call_where_several_were_not_wanted() -> None:
    assert parse(tool_parser("llama3_json", parallel=False), [LLAMA[1][0]]).calls == [OSLO]


def test_text_streams_although_calls_are_looked_for() -> None:
    parser = tool_parser("hermes")
    assert [[delta.text for delta in parser.feed(piece)] for piece in ("Hel", "lo ", "wor", "ld <to", "ast>")] == [
        ["Hel"],
        ["lo"],
        [" wor"],
        ["ld"],
        [" <toast>"],
    ]


def test_a_call_that_the_request_named_streams_its_arguments() -> None:
    parser = MessageParser(lambda source: named(source, "f"), new_id=counted())
    first, second = parser.feed('{"a"'), parser.feed(": 1")
    assert [(d.index, d.id, d.name, d.arguments) for d in first] == [(0, "call-0", "f", ""), (0, None, None, '{"a"')]
    assert [(d.index, d.id, d.name, d.arguments) for d in second] == [(0, None, None, ": 1")]
    message = Message()
    message.add([*first, *second, *parser.feed("}"), *parser.finish()])
    assert message.calls == [("f", '{"a": 1}')]


@pytest.mark.parametrize(
    "text, content, calls",
    [
        ('[{"name": "get_weather", "parameters": {"city": "Oslo"}}, {"name": "now", "parameters": {}}]', "", [OSLO, NOW]),
        (' [ {"name": "now", "parameters": {}} ] ', "", [NOW]),
        ('[{"name": "now", "parameters": {}}, {"na', '{"na', [NOW]),  # cut at max_tokens
        ("[]", "[]", []),
        ("no", "no", []),
    ],
)
def test_required_calls(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text)):
        found = parse(MessageParser(required, new_id=counted()), pieces)
        assert (found.content, found.calls) == (content, calls)
