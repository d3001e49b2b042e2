"""What is refused before any grammar is compiled, and by which words."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from framework import SamplingParams
from framework.config import EngineConfig
from framework.engine.diffusion import DiffusionConfig
from framework.speculation.config import SpeculativeConfig
from framework.structured.config import StructuredOutputsConfig
from framework.structured.spec import MAX_BYTES, MAX_REGEX_BYTES, StructuredOutputsParams


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "given, words",
    [
        ({}, "exactly one of .*none is given"),
        ({"regex": "a", "choice": ["a"]}, "exactly one of .*regex and choice are given"),
        ({"json_object": False}, "none is given"),
        ({"json_object": 1}, "json_object=1"),
        ({"jsn": {}}, "has no 'jsn': it has json"),
        ({"json": "{"}, "json is no JSON"),
        ({"json": "[" * 100_000}, "json is nested more than 64 deep"),
        ({"json": json.dumps(nested(65))}, "json is nested more than 64 deep"),
        ({"json": nested(65)}, "json is nested more than 64 deep"),
        ({"json": {"enum": list(range(200_000))}}, "json holds more than 131072 values"),
        ({"json": [1]}, "json=.*a JSON schema"),
        ({"json": "false"}, "fits nothing"),
        ({"json": {"const": float("nan")}}, "json cannot be written as JSON"),
        ({"json": {"const": object()}}, "json cannot be written as JSON"),
        ({"json": {"title": "x" * MAX_BYTES}}, f"json has .* bytes, and may have {MAX_BYTES}"),
        (
            {"json": {"items": {"$ref": "https://example.com/schema"}}},
            r"json holds \$ref 'https://example.com/schema'.*nothing is fetched",
        ),
        ({"json": {"items": {"$ref": "other.json"}}}, "nothing is fetched"),
        ({"regex": ""}, "regex=''.*not empty"),
        ({"regex": "a\0"}, "without NUL"),
        ({"regex": "a\\"}, "ends within an escape"),
        ({"regex": "(" * 65 + "a" + ")" * 65}, "regex is nested more than 64 deep"),
        ({"regex": "a" * (MAX_REGEX_BYTES + 1)}, "regex has"),
        ({"regex": "\ud800"}, "lone surrogates"),
        ({"regex": 5}, "regex=5"),
        ({"choice": []}, r"choice=\[\]"),
        ({"choice": "yes"}, "choice='yes'.*a list"),
        ({"choice": ["a", ""]}, "choice=''"),
        ({"choice": ["a\0"]}, "without NUL"),
        ({"choice": ["a"] * 10_001}, "1 to 10000"),
        ({"grammar": ""}, "grammar=''"),
        ({"grammar": "start: \0"}, "without NUL"),
        ({"structural_tag": "[]"}, "structural_tag=.*a JSON object"),
        ({"structural_tag": {"structures": [{"begin": "<f>"}], "triggers": ["<f"]}}, "structural_tag=.*begin, schema and end"),
        ({"structural_tag": {"structures": []}}, "structural_tag=.*triggers, and structures"),
        ({"regex": "a", "disable_any_whitespace": 1}, "disable_any_whitespace=1"),
    ],
)
def test_bad_constraints_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingParams(structured_outputs=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["yes", 5, [("regex", "a")]])
def test_what_is_no_constraint_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"structured_outputs=.*StructuredOutputsParams, or a dict"):
        SamplingParams(structured_outputs=given)


def test_equal_constraints_are_known_as_equal() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    spec = StructuredOutputsParams(json=schema).spec()
    assert spec == StructuredOutputsParams(json=json.dumps(schema, indent=3)).spec() and hash(spec)
    assert spec != StructuredOutputsParams(json=schema, disable_any_whitespace=True).spec()
    other_order = {"type": "object", "properties": {"a": {}, "b": {}}}
    assert spec != StructuredOutputsParams(json=other_order).spec()  # which is the order that is written
    assert StructuredOutputsParams(json_object=True).spec() == StructuredOutputsParams(json={"type": "object"}).spec()
    assert not StructuredOutputsParams(json_object=True, disable_any_whitespace=True).spec().any_whitespace
    assert not StructuredOutputsParams(json=schema, disable_additional_properties=True).spec().additional_properties
    assert StructuredOutputsParams(json=nested(64)).spec().kind == "json"
    assert StructuredOutputsParams(regex=r"\(" * 100).spec().kind == "regex"


def test_references_inside_a_schema_stay() -> None:
    for schema in (
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
        {"properties": {"$ref": {"type": "string"}}},
        {"enum": [{"$ref": "https://example.com"}]},
        {"$id": "https://example.com/a", "items": {"$ref": "/a"}},
    ):
        assert json.loads(StructuredOutputsParams(json=schema).spec().text) == schema


def test_parameters_carry_a_constraint_of_their_own() -> None:
    params = SamplingParams(structured_outputs={"choice": ["a"]})  # type: ignore[arg-type]
    assert params.structured_outputs == StructuredOutputsParams(choice=["a"])
    assert pickle.loads(pickle.dumps(params)).structured_outputs.spec() == params.structured_outputs.spec()
    params.structured_outputs.regex = "b"
    with pytest.raises(ValueError, match="choice are given"):
        params.validate()


def test_the_configuration_is_checked() -> None:
    for given, words in (
        ({"backend": "outlines"}, "structured_outputs.backend='outlines'.*one of auto, llguidance, xgrammar"),
        ({"compile_timeout_s": 0.0}, "structured_outputs.compile_timeout_s"),
        ({"num_threads": 0}, "structured_outputs.num_threads"),
        ({"cache_bytes": -1}, "structured_outputs.cache_bytes"),
    ):
        with pytest.raises(ValueError, match=words):
            EngineConfig(structured_outputs=StructuredOutputsConfig(**given)).validate()  # type: ignore[arg-type]
    assert StructuredOutputsConfig.of({"backend": "guidance"}).backend == "llguidance"
    with pytest.raises(ValueError, match="has no 'bakend'; it has backend"):
        StructuredOutputsConfig.of({"bakend": "x"})
    with pytest.raises(ValueError, match=r"structured_outputs\.num_threads='2' cannot work"):
        StructuredOutputsConfig.of({"num_threads": "2"})
    for of in (StructuredOutputsConfig.of, SpeculativeConfig.of, DiffusionConfig.of):
        with pytest.raises(ValueError, match=r"_config=3 cannot work: it must be a dictionary"):
            of(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"diffusion\.threshold='x' cannot work"):
        DiffusionConfig.of({"threshold": "x"})
