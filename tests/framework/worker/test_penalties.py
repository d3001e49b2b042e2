"""The state of penalties, after a request that found no memory for its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from framework.engine.step import NewRequest
from framework.plan import KernelPlan
from framework.sampling_params import SamplingParams
from framework.worker.penalties import Penalties

CPU = torch.device("cpu")


@pytest.mark.parametrize("failing", [1, 2])
def test_more_biases_than_memory_harm_no_later_request(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    penalties = Penalties(KernelPlan({}, [], CPU, torch.float32), 2, 10, CPU)
    request = NewRequest(0, "r", [1], 1, 0, [[1]], SamplingParams(logit_bias={3: 1.0, 4: 2.0, 5: 3.0}))
    pad, calls = torch.nn.functional.pad, []

    def scarce(*args: Any, **given: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == failing:
            raise torch.OutOfMemoryError("none left")
        return pad(*args, **given)

    monkeypatch.setattr(torch.nn.functional, "pad", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        penalties.add(request)
    penalties.add(request)
    assert penalties._rows is not None
    assert penalties._rows.bias_ids.tolist() == [[3, 4, 5], [-1, -1, -1]]
    assert penalties._rows.bias_values.tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
