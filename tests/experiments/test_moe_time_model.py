"""The fit of the time model: it finds constants that made a table, and the committed tables are what the committed rows give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.moe_time_model.__main__ import HERE, fit, held_out_table, load_points, rank_correlation, rank_table
from experiments.moe_time_model.model import SHAPE, seconds
from experiments.moe_time_model.routing import expert_counts
from triton_kernels.lab.time_model import FITTED, Constants


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    return load_points()


def test_the_fit_finds_the_constants_of_made_up_times(points: pd.DataFrame) -> None:
    true = Constants(5e-6, 1.5e-6, 2e-7, 1e-10, l2=2.5, memory=0.8, tensor=0.6, tensor_fp8=0.25)
    made_up = points.assign(measured_us=seconds(points, true) * 1e6)
    start = replace(true, launch_s=3.5e-6, program_s=2e-6, l2=2.0, memory=1.0, tensor=0.8, tensor_fp8=0.35)
    found = fit(made_up, start)
    assert np.allclose(seconds(points, found), seconds(points, true), rtol=0.05)
    for name in ("launch_s", "memory", "tensor", "tensor_fp8"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.05), name


def test_the_committed_tables_are_those_of_the_committed_rows(points: pd.DataFrame) -> None:
    table, ranks = held_out_table(points, FITTED["sm_90"]), rank_table(points, FITTED["sm_90"])
    pd.testing.assert_frame_equal(table, pd.read_csv(HERE / "held_out.csv"), check_dtype=False, rtol=1e-3)
    pd.testing.assert_frame_equal(ranks, pd.read_csv(HERE / "ranks.csv"), check_dtype=False, rtol=1e-2)


def test_what_is_claimed_of_the_model(points: pd.DataFrame) -> None:
    """On shapes that the fit has not seen."""
    held, fitted = points[points.held_out], points[~points.held_out]
    assert not set(held[SHAPE].itertuples(index=False)) & set(fitted[SHAPE].itertuples(index=False))
    assert abs(held[SHAPE].drop_duplicates().shape[0] - fitted[SHAPE].drop_duplicates().shape[0]) <= 1
    table, ranks = pd.read_csv(HERE / "held_out.csv"), pd.read_csv(HERE / "ranks.csv")
    assert len(table) == len(held) >= 60
    assert table.error.abs().median() <= 0.25 and rank_correlation(table.predicted_us, table.measured_us) >= 0.9
    assert len(ranks) == 20 and ranks.of.min() >= 12 and (ranks["rank"] <= ranks.of / 4).sum() >= 14


def test_a_slower_memory_takes_longer(points: pd.DataFrame) -> None:
    slower = replace(FITTED["sm_90"], memory=FITTED["sm_90"].memory / 2)
    assert (seconds(points, slower) > seconds(points, FITTED["sm_90"])).all()


@pytest.mark.parametrize("distribution", ["balanced", "uniform", "power_law_1.01", "power_law_1.2"])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k", "num_ranks"), [(1, 128, 8, 1), (48, 512, 10, 32), (512, 8, 2, 4)])
def test_every_choice_has_an_expert(distribution: str, num_tokens: int, num_experts: int, top_k: int, num_ranks: int) -> None:
    for counts in expert_counts(distribution, num_tokens, num_experts, top_k, num_ranks):
        assert counts.shape == (num_experts,) and counts.sum() == num_tokens * top_k
        assert counts.min() >= 0 and (distribution == "balanced" or counts.max() <= num_tokens)
        if distribution.startswith("power_law"):
            ranks = counts.reshape(num_ranks, -1).sum(1)
            assert ranks[0] == ranks.max()


def test_balanced_tokens_are_spread_evenly() -> None:
    (points,) = expert_counts("balanced", 4, 128, 8, 1)
    (many,) = expert_counts("balanced", 4096, 128, 8, 1)
    assert (points > 0).sum() == 32 and points.max() == 1 and set(many) == {256}
