"""An LLM whose ranks are processes, as a script has it: several at once, forgotten, with a rank that was killed."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest

from framework import LLM, SamplingParams
from framework.engine.errors import EngineDeadError
from framework.worker.rank import check_devices

from ..claimed_cuda import claimed_cuda
from .gloo_ranks import quick_starts
from .ranks import make_config
from .test_faults import pids, runs, wait_until

__all__ = ["quick_starts"]
PROMPTS = ["def f(", "import "]


def ranks(**given: Any) -> LLM:
    return LLM("tiny", tensor_parallel_size=2, device="cpu", dtype="float32", num_gpu_blocks_override=64, **given)


def tokens(llm: LLM) -> list[Any]:
    params = SamplingParams(temperature=0, max_tokens=8)
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params, use_tqdm=False)]


@pytest.mark.usefixtures("quick_starts")
def test_two_live_beside_each_other_and_one_that_is_forgotten_leaves_nothing() -> None:
    first, second = ranks(), ranks()
    expected = tokens(first)
    assert tokens(second) == tokens(first) == expected
    workers, others = pids(first.engine), pids(second.engine)
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: not runs(workers[0]))
    with pytest.raises(RuntimeError, match=r"rank 0 .process \d+. ended with exit code -9 .killed by SIGKILL"):
        tokens(first)
    with pytest.raises(EngineDeadError, match=r"rank 0 .*SIGKILL.*: build a new engine"):
        tokens(first)
    assert not any(map(runs, workers))
    assert tokens(second) == expected
    del second
    gc.collect()
    wait_until(lambda: not any(map(runs, others)))
    first.shutdown()


def test_ranks_without_a_device_of_their_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    config = make_config(2)
    with claimed_cuda():
        config.device = "cuda"
        with pytest.raises(ValueError, match=r"parallel.tp=2.* 2 GPUs are needed, 1 are seen .CUDA_VISIBLE_DEVICES=3"):
            check_devices(config)
        config.device = "cuda:0"
        with pytest.raises(ValueError, match="device=cuda:0 cannot work with 2 ranks"):
            check_devices(config)
