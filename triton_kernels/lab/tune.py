"""Looking for better options of an impl: candidates, static gates, then timing of what is left against the default.

Candidates are combinations of the impl's ``tune_space``. Before any is timed, it is compiled for the target (which needs no GPU)
and dropped if its machine code breaks a gate: spills, too much shared memory, no matrix instruction. Survivors, in the order of the
static model of time, are timed on the op's benchmark cases, interleaved with the default; one that is wrong, or not clearly faster,
is not taken.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cases.serving import serving_cases
from ..impl import Impl
from ..op import Case, Op
from ..resolve import Choice
from ..tuning import Entry, layer_bucket
from . import calls
from .aot import Compilation
from .bench import Contender, Row, Task, measure
from .ceilings import Ceilings
from .gates import Rule, violations
from .time_model import case_seconds, serving_cost

GAIN = 0.98
"""A candidate is taken if it needs less than this share of the default's time: less is noise."""
GROUP = 8
"""Candidates that are timed together with the default; more would hold too much memory at once."""


@dataclass(frozen=True)
class Candidate:
    """Options to try, why they are not worth timing (empty: they are), and the time that the static model gives them, which is good
    for their order only."""

    options: Mapping[str, Any]
    reasons: tuple[str, ...] = ()
    predicted_us: float = math.inf


@dataclass
class Scores:
    """Of one bucket: time over the default's, per candidate and case; and medians in microseconds. weights: of captured cases the
    time that a workload spends in each with the default; of others 1."""

    bucket: dict[str, Any]
    ratios: dict[str, list[float]] = field(default_factory=dict)
    medians_us: dict[str, float] = field(default_factory=dict)
    options: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    default_us: float = 0.0
    num_cases: int = 0
    weights: list[float] = field(default_factory=list)


def candidates(impl: Impl, num_tokens: int, limit: int = 40) -> list[dict[str, Any]]:
    """Combinations of the impl's tune space, at most ``limit``, spread over the space and the same every time. Raises ValueError
    for an impl without a tune space."""
    if not impl.tune_space:
        raise ValueError(
            f"{impl.op}:{impl.name} declares no tune_space, so there is nothing to try; "
            f"its options are {', '.join(impl.options) or 'none'}"
        )
    allowed = getattr(impl.target, "tune_filter", lambda options, num_tokens: True)
    every = [dict(zip(impl.tune_space, values)) for values in itertools.product(*impl.tune_space.values())]
    every = [options for options in every if allowed(options, num_tokens)]
    if len(every) <= limit:
        return every
    chosen = sorted(random.Random(0).sample(range(len(every)), limit))
    return [every[i] for i in chosen]


def near_serving_cases(op: str, num_tokens: int) -> list[str]:
    """Names of the serving cases whose number of tokens is nearest: what candidates are compiled for."""
    octaves = {c.name: abs(math.log2(max(c.batch.num_tokens, 1) / max(num_tokens, 1))) for c in serving_cases(op)}
    return [name for name, value in octaves.items() if value == min(octaves.values())]


def judge(
    op: Op, impl: Impl, options: Sequence[Mapping[str, Any]], compiled: Iterable[Compilation], rules: Sequence[Rule]
) -> list[Candidate]:
    """Which candidates pass the gates in at least one of the compiled cases, best predicted time first; cases that the impl refuses
    do not count. A kernel that cases share is compiled for the first of them: the longest predicted time counts."""
    found: dict[str, list[tuple[str, ...]]] = {}
    predicted_us: dict[str, float] = {}
    for result in compiled:
        if result.refused:
            continue
        problems = [result.error] if result.error else []
        for artifact in result.artifacts:
            problems += [f"{artifact.kernel}: {problem}" for problem in violations(artifact, rules)]
            if artifact.programs_per_sm == 0:
                problems.append(f"{artifact.kernel}: does not fit a multiprocessor")
        found.setdefault(result.impl, []).append(tuple(problems))
        if result.artifacts:
            seconds = case_seconds(result.artifacts, serving_cost(op, result.case))
            predicted_us[result.impl] = max(predicted_us.get(result.impl, 0.0), seconds * 1e6)
    judged = []
    for chosen in options:
        name = str(Choice(impl.name, chosen))
        verdicts = found.get(name, [("refuses every serving case",)])
        judged.append(Candidate(chosen, () if () in verdicts else verdicts[0], predicted_us.get(name, math.inf)))
    return sorted(judged, key=lambda candidate: candidate.predicted_us)


def time_candidates(
    op: Op,
    impl: Impl,
    case: Case,
    options: Sequence[Mapping[str, Any]],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    limit_s: float = 5.0,
) -> Iterator[list[Row]]:
    """Rows of the default (first) and some candidates, group by group."""
    default = Contender(impl, Choice(impl.name, {}))
    for start in range(0, len(options), GROUP):
        group = [Contender(impl, Choice(impl.name, chosen)) for chosen in options[start : start + GROUP]]
        yield measure(Task(op, case, (default, *group)), device, dtype, ceilings, limit_s)


def bucket_of(op: Op, impl: Impl, case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The bucket that a case's result is kept under; with the number of tokens where the impl looks it up by call."""
    spec = calls.make_spec(op, calls.make_args(op, case, dtype, device), dtype, device)
    return layer_bucket(spec, sum(case.q_lens) if getattr(impl.target, "tuned_by_tokens", False) else None)


def add_scores(
    scores: Scores, rows: Iterable[Sequence[Row]], options: Sequence[Mapping[str, Any]], impl: Impl, count: int = 0
) -> None:
    """Adds the groups of rows of one case. count: how often it was called; 0 = it was made up."""
    by_label = {str(Choice(impl.name, chosen)): chosen for chosen in options}
    scores.num_cases += 1
    scores.weights.append(1.0)
    for default, *others in rows:
        if default.status != "ok" or default.median_us is None:
            continue
        scores.default_us = default.median_us
        scores.weights[-1] = count * default.median_us if count else 1.0
        for row in others:
            if row.status == "ok" and row.median_us is not None:
                scores.ratios.setdefault(row.impl, []).append(row.median_us / default.median_us)
                scores.medians_us[row.impl], scores.options[row.impl] = row.median_us, by_label[row.impl]


def best_entry(scores: Scores, impl: Impl) -> Entry | None:
    """The entry for a bucket: the least mean over its cases, by weight, if all of them ran and it is clearly below the default."""
    whole = {label: _mean(r, scores.weights) for label, r in scores.ratios.items() if len(r) == scores.num_cases}
    label = min(whole, key=whole.__getitem__, default=None)
    if label is None or whole[label] >= GAIN:
        return None
    return Entry(impl.name, scores.bucket, dict(scores.options[label]), scores.medians_us[label], scores.default_us)


def _mean(ratios: Sequence[float], weights: Sequence[float]) -> float:
    """Geometric; of captured cases arithmetic: what all their calls take, over what they take with the default."""
    if set(weights) == {1.0}:
        return math.prod(ratios) ** (1 / len(ratios))
    return sum(w * r for w, r in zip(weights, ratios, strict=True)) / sum(weights)
