"""The shapes of the kernel calls of a run as a case file, which ``kernelswap kernels bench OP --cases`` and ``tune`` replay.

At most ``MAX_CASES`` per op and dims. Where there were more shapes, those of about equal size are one case: requests, new tokens
and tokens in the cache within the same part of an octave, as fine as the limit allows. The case has the mean number of requests,
each as long as those at its place are on average when a call's requests stand in order of length, and the mean of both totals:
counts stay exact, requests and tokens but for rounding, and a ragged batch stays ragged.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .results import format_table

if TYPE_CHECKING:
    from ..engine.engine import Engine

CASES_FILE = "cases.json"
FORMAT = "kernelswap cases 1"
MAX_CASES = 32

Lens = tuple[int, ...]


class Captured:
    """Takes down the shapes of an engine's calls of ``ops`` from now on."""

    def __init__(self, engine: Engine, ops: Sequence[str]) -> None:
        assert engine.executor.call_times is not None, "the config asks for them"
        self._op_times, self._ops, self._model = engine.executor.call_times, ops, engine.config.model.name
        self._op_times.clear()

    def table(self) -> str:
        rows = [["captured", "calls", "shapes", "cases", "within (octaves)"]]
        for op, found in self._found().items():
            rows.append([op, f"{found['calls']}", f"{found['shapes']}", f"{len(found['cases'])}", f"{found['octaves']:g}"])
        return format_table(rows)

    def write(self, folder: Path) -> list[str]:
        dtypes = {call.dtype for call, *_ in self._op_times}
        head = {"format": FORMAT, "model": self._model, "dtype": min(dtypes, default=None), "ops": self._found()}
        (folder / CASES_FILE).write_text(_lines(head) + "\n", encoding="utf-8")
        return [CASES_FILE]

    def _found(self) -> dict[str, dict[str, Any]]:
        shapes: dict[str, dict[Any, Counter[tuple[Lens, Lens]]]] = defaultdict(lambda: defaultdict(Counter))
        for call, _, _, count in self._op_times:
            if call.op in self._ops:
                shapes[call.op][call.dims, call.options][call.q_lens, call.ctx_lens] += count
        found = {}
        for op in self._ops:
            cases: list[dict[str, Any]] = []
            widest = 0.0
            for (dims, options), counts in shapes[op].items():
                reduced, octaves = reduce(counts)
                widest = max(widest, octaves)
                of_dims = {"dims": dict(dims), "options": dict(options)}
                cases += [{**of_dims, "q_lens": q, "ctx_lens": ctx, "count": count} for q, ctx, count in reduced]
            calls = sum(case["count"] for case in cases)
            num_shapes = sum(len(counts) for counts in shapes[op].values())
            found[op] = {"calls": calls, "shapes": num_shapes, "octaves": widest, "cases": cases}
        return found


def reduce(shapes: Mapping[tuple[Lens, Lens], int], limit: int = MAX_CASES) -> tuple[list[tuple[Lens, Lens, int]], float]:
    """(q_lens, ctx_lens) -> count, as at most ``limit`` (q_lens, ctx_lens, count), the most frequent first; and within how many
    octaves those lie that are one (0: all are as they were)."""
    octaves = 0.0
    groups: dict[Any, list[tuple[Lens, Lens, int]]] = {shape: [(*shape, count)] for shape, count in shapes.items()}
    while len(groups) > limit:
        octaves = octaves * 2 or 1 / 16
        groups = defaultdict(list)
        for (q_lens, ctx_lens), count in shapes.items():
            sizes = (len(q_lens), sum(q_lens), sum(ctx_lens))
            groups[tuple(round(math.log2(size + 1) / octaves) for size in sizes)].append((q_lens, ctx_lens, count))
    reduced = [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]
    return sorted(reduced, key=lambda case: -case[2]), octaves


def _mean(group: Sequence[tuple[Lens, Lens, int]]) -> tuple[Lens, Lens, int]:
    total = sum(count for *_, count in group)
    num = round(sum(len(q_lens) * count for q_lens, _, count in group) / total)
    places = (np.arange(num) + 0.5) / max(num, 1)
    means, sums = np.zeros((2, num)), np.zeros(2)
    for q_lens, ctx_lens, count in group:
        rows = np.array(sorted(zip(ctx_lens or (0,) * len(q_lens), q_lens), reverse=True)).reshape(-1, 2).T
        means += count / total * rows[:, (places * len(q_lens)).astype(int)]
        sums += count / total * rows.sum(1)
    contexts, queries = (_rounded(lens, round(size)) for lens, size in zip(means, sums))
    if not group[0][1]:
        return tuple(queries.tolist()), (), total
    return tuple(queries.tolist()), tuple(np.where(contexts > 0, np.maximum(contexts, queries), 0).tolist()), total


def _rounded(values: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the proportions of ``values`` that sum to ``total``: the largest remainders are rounded up."""
    if not values.sum():
        return values.astype(int)
    values = values * (total / values.sum())
    whole = np.floor(values + 1e-9).astype(int)
    whole[np.argsort(whole - values, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _lines(head: Mapping[str, Any]) -> str:
    """JSON with a line per case."""
    ops = []
    for op, found in head["ops"].items():
        cases = ",\n".join("   " + json.dumps(case) for case in found["cases"])
        rest = json.dumps({key: value for key, value in found.items() if key != "cases"})
        ops.append(f'  {json.dumps(op)}: {rest[:-1]}, "cases": [\n{cases}\n  ]}}')
    rest = json.dumps({key: value for key, value in head.items() if key != "ops"})
    return f'{rest[:-1]}, "ops": {{\n' + ",\n".join(ops) + "\n}}"
