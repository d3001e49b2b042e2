"""The server does what its own OpenAPI description says, whatever it is sent."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from .servers import HTTPServer

CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_every_answer_is_one_that_is_described(server: HTTPServer, mode: GenerationMode, count: int) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing can be wrong with it

        @settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            check(case)

        run()


def check(case: schemathesis.Case) -> None:
    _shorten(case.body)
    response = case.call(timeout=120)
    assert response.status_code != 500, response.text
    case.validate_response(response, checks=CHECKS)  # which holds for 501 and 503, too: they must be described


def _shorten(body: Any) -> None:
    """So that an answer takes no minutes."""
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if isinstance(body, dict) and (body.get(name) is None or (isinstance(body[name], int) and body[name] > 4)):
            body[name] = 2
