"""Comparisons of simulated runs whose steps take 5 % more or less by chance: equals are called equal, and 3 % is found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import pytest

from framework.build import build_engine
from framework.config import CacheConfig, EngineConfig, ExecutorConfig
from framework.study.comparison import compare
from framework.study.driver import run_workload
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.statistics import FIRST_LOOK, confidence_halfwidth
from framework.study.sweep import AUTO
from framework.study.workload import WorkloadConfig, build_workload

TPOT = "metric.tpot_p50_s"


class Runs:
    """TPOT of one run after another on an engine whose noise is seeded; each serves the requests of its repeat."""

    def __init__(self, seed: int, step_s: float) -> None:
        executor = ExecutorConfig("simulated", calibration="roofline", step_overhead_s=step_s, noise=0.05)
        self._engine = build_engine(EngineConfig(cache=CacheConfig(prefix_caching=False), executor=executor, seed=seed))

    def __call__(self, repeat: int) -> float:
        workload = WorkloadConfig(source="random", num_requests=1, prompt_tokens=16, output_tokens=8, seed=repeat)
        requests = build_workload(workload, self._engine.executor.vocab_size, None)
        return compute_metrics(run_workload([self._engine], requests), SLOConfig())["tpot_p50_s"]


def verdict(a: list[float], b: list[float], repeats: str | int = 0) -> str:
    rows = [
        {"status": "ok", "setting": name, "repeat": repeat, "repeats": repeats, TPOT: value}
        for name, values in (("a", a), ("b", b))
        for repeat, value in enumerate(values)
    ]
    return compare(pd.DataFrame(rows), [TPOT], "setting", "a")["verdict"][0]


@pytest.fixture(scope="module")
def equals() -> tuple[Runs, Runs]:
    return Runs(seed=1, step_s=0.01), Runs(seed=2, step_s=0.01)


def test_of_200_comparisons_of_equals_at_most_18_are_called_different(equals: tuple[Runs, Runs]) -> None:
    """One metric, named beforehand. Of 200 intervals of 95 %, 10 exclude no change on average, more than 18 in one case of 200."""
    a, b = equals
    verdicts = [verdict(*([run(repeat) for repeat in range(8)] for run in (a, b))) for _ in range(200)]
    assert 0 < sum(found != "within noise" for found in verdicts) <= 18


def until_narrow(a: Runs, b: Runs, precision: float, most: int) -> Iterator[tuple[float, float]]:
    """Pairs as ``repeats=auto`` measures them."""
    logs: list[float] = []
    for repeat in range(most):
        yield (pair := (a(repeat), b(repeat)))
        logs.append(np.log(pair[1] / pair[0]))
        if len(logs) >= FIRST_LOOK and confidence_halfwidth(logs, sequential=True) <= precision:
            return


def test_a_step_that_is_3_percent_longer_is_found_in_at_most_60_repeats(equals: tuple[Runs, Runs]) -> None:
    slower = Runs(seed=3, step_s=0.0103)
    for _ in range(5):
        values = list(until_narrow(equals[0], slower, precision=0.012, most=60))
        found = verdict(*map(list, zip(*values)), repeats=AUTO)
        assert found.endswith("% slower") and 1 < float(found.split()[0]) < 5 and len(values) <= 60


def test_looking_until_the_interval_is_narrow_does_not_make_equals_differ(equals: tuple[Runs, Runs]) -> None:
    most = partial(until_narrow, *equals, precision=0.02, most=60)
    verdicts = [verdict(*map(list, zip(*most())), repeats=AUTO) for _ in range(40)]
    assert sum(found != "within noise" for found in verdicts) <= 6  # of 40 x 5 %, with a chance of 1.4 %
