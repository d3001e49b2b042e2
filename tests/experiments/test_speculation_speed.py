"""The speed of speculation, measured on few tokens: every setting serves the same, and what is said of it fits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.speculation_speed import HELDOUT, METHODS, MODES, Mode, draw, measure, ratio, tpot_s


def test_settings_serve_the_same_prompts_and_are_compared() -> None:
    names = ("ngram, 3", "mtp, 3")
    settings = {"none": {}, **{name: METHODS[name] for name in names}}
    rows = measure(Mode(settings, {2: 2}, replace(HELDOUT, prompt_tokens=96, output_tokens=12), num_warmups=1), 2)
    assert [row["setting"] for row in rows] == list(settings)
    for row in rows:
        assert row["outputs"] == row["equal_outputs"] == 4 and row["tpot_mean_ms"] > 0
        assert row["verifying_share"] > 0 and row["sampling_share"] > 0
        if row["setting"] == "none":
            assert row["tokens_per_step"] == 1 and row["drafting_share"] == 0 and "times_faster" not in row
        else:
            assert row["times_faster_low"] <= row["times_faster"] <= row["times_faster_high"]
            assert row["drafting_share"] > 0 and 0 <= row["acceptance_rate_pos2"] <= row["acceptance_rate_pos0"] <= 1


def test_time_counts_while_all_requests_run() -> None:
    def outputs(*times: list[float]) -> Any:
        return [SimpleNamespace(metrics=SimpleNamespace(token_times_s=each)) for each in times]

    assert tpot_s(outputs([1.0, 2.0, 2.0, 4.0])) == 1.0
    # Both from 1.5 to 4.0: five tokens.
    assert tpot_s(outputs([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 4.0, 9.0])) == 2 * 2.5 / 5


def test_a_ratio_is_a_geometric_mean() -> None:
    found = ratio("x", np.array([2.0, 8.0]))
    assert found["x"] == 4 and found["x_low"] < 2 and found["x_high"] > 8, "of two values"
    assert ratio("x", np.ones(3)) == {}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_begins_with_no_drafts(name: str) -> None:
    assert next(iter(MODES[name].settings.items())) == ("none", {})


def test_a_cell_of_the_figure_is_a_setting_at_a_batch() -> None:
    settings = {"none": 1.0, "ngram, 7": 2.25}
    rows = [
        {"batch": batch, "setting": name, **({"times_faster": value + batch} if value > 1 else {})}
        for batch, (name, value) in product((1, 4), settings.items())
    ]
    panels = [axes for axes in draw(rows).axes if axes.texts]
    assert [sorted(text.get_text() for text in axes.texts) for axes in panels] == [["1", "1", "3.25", "6.25"]]
