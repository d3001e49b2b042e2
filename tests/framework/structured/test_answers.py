"""Many answers of the embedded model at temperature 1 under bounded schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from framework import LLM, SamplingParams

from .vocabularies import EOS, accept, allowed, grammar

NUM_ANSWERS = 200


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SHORT = {"type": "string", "maxLength": 16}
SCHEMAS: list[dict[str, Any]] = [
    closed(name=SHORT, age={"type": "integer", "minimum": 0, "maximum": 120}),
    closed(kind={"enum": ["a", "b", None]}, values={"type": "array", "items": {"type": "boolean"}, "maxItems": 5}),
    closed(point=closed(x={"type": "integer", "minimum": -99, "maximum": 99}, y={"type": "integer", "minimum": 0, "maximum": 9})),
    {"type": "array", "items": closed(id={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}), "minItems": 1, "maxItems": 3},
    {"anyOf": [closed(error=SHORT), closed(ok={"const": True}, when={"type": "string", "format": "date"})]},
    {"type": "array", "prefixItems": [SHORT, {"type": "null"}], "items": False, "minItems": 2},
    {**closed(left={"$ref": "#/$defs/leaf"}, right={"$ref": "#/$defs/leaf"}), "$defs": {"leaf": closed(v={"enum": [1, 2.5, "c"]})}},
    {"type": "object", "properties": {"a": SHORT, "b": SHORT}, "minProperties": 1, "additionalProperties": False},
    closed(share={"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}),
]


@pytest.mark.slow
def test_answers_that_stop_are_valid_and_others_are_beginnings() -> None:
    llm = LLM("tiny", max_num_seqs=64)
    schemas = [SCHEMAS[i % len(SCHEMAS)] for i in range(NUM_ANSWERS)]
    params = [SamplingParams(seed=i, max_tokens=512, structured_outputs={"json": s}) for i, s in enumerate(schemas)]  # type: ignore[arg-type]
    outputs = llm.generate(["import json\n"] * NUM_ANSWERS, params, use_tqdm=False)
    num_stopped = 0
    for schema, output in zip(schemas, outputs):
        (answer,) = output.outputs
        if answer.finish_reason == "stop":
            num_stopped += 1
            jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(answer.text))
        else:
            matcher = grammar("llguidance", json=schema).matcher([EOS])
            for token in answer.token_ids:
                assert token in allowed(matcher)
                accept(matcher, token)
    print(f"{num_stopped} of {NUM_ANSWERS} answers stopped")
    assert num_stopped >= 0.8 * NUM_ANSWERS
