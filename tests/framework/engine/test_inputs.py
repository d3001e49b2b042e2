"""From what users pass to what the engine takes."""

from __future__ import annotations

import numpy as np
import pytest

from framework.engine.inputs import check_priority


@pytest.mark.parametrize("priority", [0, -3, 2**70, np.int32(4)])
def test_priorities_are_integers(priority: object) -> None:
    assert type(check_priority(priority)) is int and check_priority(priority) == priority


@pytest.mark.parametrize("priority", ["high", 1.0, True, None, float("nan")])
def test_what_cannot_be_ordered_is_no_priority(priority: object) -> None:
    with pytest.raises(ValueError, match="it must be an integer"):
        check_priority(priority)
