"""The one form of a measured call, whoever measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

COLUMNS = ("op", "impl", "dtype", "dims", "q_lens", "ctx_lens", "us", "count")
"""Columns of a table of calls, as rows of ``kernelswap kernels bench``, profiles of runs and captured cases have them.

op        name of the op
impl      which kernel; may be left out, or empty
dtype     of the activations: bfloat16
dims      what the op's cost function takes: ``out_features=4096 in_features=4096`` or a JSON object
q_lens    new tokens per request: ``512 1*31`` is one request of 512 and 31 of 1, or a JSON list; of an op for which requests make
          no difference the number of tokens (of a collective: of elements)
ctx_lens  tokens in the cache per request, the new ones included, likewise; left out or empty: as q_lens
us        microseconds of one call
count     how often it was called (default 1)
"""


MAX_SIZE, MAX_REQUESTS, MAX_EXPERTS = 2.0**40, 1 << 20, 1 << 16
"""The largest dim or length, the most requests of a call and the most experts of a layer: above, a table is taken for broken."""


@dataclass(frozen=True, slots=True)
class Row:
    """A measured call. runs: (requests, new tokens of each, tokens in the cache of each). place: file and line, for messages."""

    op: str
    impl: str
    dtype: str
    dims: Mapping[str, float]
    runs: tuple[tuple[float, float, float], ...]
    us: float
    count: float = 1
    place: str = ""


def parse_dims(text: str) -> dict[str, float]:
    """Of either way to write dims. Raises ValueError."""
    text = text.strip()
    if text.startswith("{"):
        return _checked({str(name): _number(value) for name, value in json.loads(text).items()})
    pairs = [part.partition("=") for part in text.split()]
    if any(not sign for _, sign, _ in pairs):
        raise ValueError(f"expected name=value pairs separated by blanks, found {text!r}")
    return _checked({name: _number(value) for name, _, value in pairs})


def _checked(dims: dict[str, float]) -> dict[str, float]:
    if (experts := dims.get("num_experts", 1)) < 1 or experts > MAX_EXPERTS:
        raise ValueError(f"num_experts={experts:g} cannot be; expected 1 to {MAX_EXPERTS}")
    return dims


def parse_runs(q_lens: str, ctx_lens: str) -> tuple[tuple[float, float, float], ...]:
    """Equal neighbours become one run. Raises ValueError."""
    queries = _lengths(q_lens)
    contexts = _lengths(ctx_lens) if ctx_lens.strip() else queries
    if len(queries) != len(contexts) or not queries:
        raise ValueError(f"q_lens has {len(queries)} requests, ctx_lens {len(contexts)}")
    if not any(queries) or any(0 < context < query for query, context in zip(queries, contexts)):
        raise ValueError("expected new tokens (q_lens), and of no request more than its tokens in the cache with them (ctx_lens)")
    runs: list[tuple[float, float, float]] = []
    for pair in zip(queries, contexts):
        count = runs.pop()[0] if runs and runs[-1][1:] == pair else 0
        runs.append((count + 1, *pair))
    return tuple(runs)


def _lengths(text: str) -> list[float]:
    text = text.strip()
    if text.startswith("["):
        return [_number(value) for value in json.loads(text)]
    parts = [part.partition("*") for part in text.split()]
    if (requests := sum(int(times or 1) for _, _, times in parts)) > MAX_REQUESTS:
        raise ValueError(f"{requests} requests in a call cannot be; expected {MAX_REQUESTS} at most")
    return [length for value, _, times in parts for length in [_number(value)] * int(times or 1)]


def _number(value: str | float) -> float:
    number = float(value)
    if not 0 <= number <= MAX_SIZE:
        raise ValueError(f"{str(value)[:40]} is no size; expected a number from 0 to {MAX_SIZE:g}")
    return number
