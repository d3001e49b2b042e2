"""The JSON-Schema-Test-Suite (draft 2020-12, MIT license, Julian Berman) as it comes with the source distribution of jsonschema
4.26: every schema compiled, every instance followed token by token. A line per file: [description, schema, [[instance, valid]]]."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from framework.structured.spec import StructuredOutputsParams

from .vocabularies import accepts, backend

SUITE: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parent / "json_schema_suite.json.gz").read_bytes()))

EXACT = {
    "llguidance": "allOf anchor anyOf boolean_schema const content default enum exclusiveMaximum exclusiveMinimum "
    "infinite-loop-detection items maximum minimum pattern prefixItems properties required type",
    "xgrammar": "boolean_schema",
}
"""Files of which every schema that something fits is compiled."""

COMPILED = {"llguidance": 164, "xgrammar": 32}
"""Of the 368 schemas."""

TOLD_OTHERWISE = {"1.0", "0.0", "[0.0]", "[1.0]", "-2.0", "9007199254740992.0", '{"baz": "bax", "foo": "bar"}'}
"""Valid instances that are never written: numbers equal to a given one, or whole, in another notation, and properties of a constant
in another order."""

FITS_NOTHING = ("Unsatisfiable", "fits nothing", "False")
"""How a schema is called that has no valid instance."""


def in_order(value: Any, schema: Any) -> Any:
    """With properties in the order of the schema, those of allOf first: the only one that is written."""
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return value
    parts = [schema, *(part for part in schema.get("allOf", ()) if isinstance(part, dict))]
    known = [name for part in parts for name in part.get("properties", {})]
    names = [name for name in dict.fromkeys(known) if name in value] + [name for name in value if name not in known]
    return {name: in_order(value[name], schema.get("properties", {}).get(name)) for name in names}


def orders(value: Any, schema: Any) -> list[str]:
    ordered = in_order(value, schema)
    found = [ordered, value]
    if isinstance(ordered, dict):
        found.append(dict(reversed(ordered.items())))
    return list(dict.fromkeys(json.dumps(each, ensure_ascii=False) for each in found))


def keywords(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        return set(schema).union(*map(keywords, schema.values()))
    return set().union(*map(keywords, schema)) if isinstance(schema, list) else set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
def test_nothing_invalid_passes_and_refusals_say_why(name: str) -> None:
    library, compiled, refused = backend(name), Counter[str](), dict[str, list[str]]()
    wrong, missed, unnamed = [], [], []
    for file, cases in SUITE.items():
        for description, schema, instances in cases:
            try:
                grammar = library.compile(StructuredOutputsParams(json=schema).spec())
            except ValueError as error:
                refused.setdefault(file, []).append(f"{description}: {error}")
                named = any(word in str(error) for word in keywords(schema) - {"type"}) or "'type'" in str(error)
                if not named and not any(nothing in str(error) for nothing in FITS_NOTHING):
                    unnamed.append((file, description, str(error)))
                continue
            compiled[file] += 1
            for value, valid in instances:
                texts = orders(value, schema)
                if (
                    valid
                    and not any(accepts(grammar, text) for text in texts)
                    and file != "format"
                    and texts[0] not in TOLD_OTHERWISE
                ):
                    missed.append((file, description, texts[0]))
                if not valid:
                    wrong += [(file, description, text) for text in texts if accepts(grammar, text)]
    assert not wrong and not missed and not unnamed, f"{wrong}\n{missed}\n{unnamed}"
    print(f"{name}: {compiled.total()} of {sum(map(len, SUITE.values()))} schemas compiled; {dict(compiled)}")
    assert compiled.total() == COMPILED[name]
    satisfiable = {file: [line for line in lines if not any(map(line.count, FITS_NOTHING))] for file, lines in refused.items()}
    assert {file for file in SUITE if not satisfiable.get(file)} == set(EXACT[name].split())
