"""Ranks of a small model that are processes and meet by gloo; one of them comes to harm in the middle of a step."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from framework.clock import WallClock
from framework.config import EngineConfig, ModelConfig, ParallelConfig
from framework.distributed.executor import DistributedExecutor
from framework.distributed.launchers import processes
from framework.distributed.messages import Place
from framework.distributed.rendezvous import Rendezvous
from framework.distributed.worker import THREAD_VARIABLE
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.worker.rank import open_rank

from .ranks import harm, tiny_config


def harmed_rank(config: EngineConfig, place: Place, folder: str = "") -> Any:
    """Its last layer does what prompts ask for, see ``harm``. folder: where a rank that ends writes what it was."""
    executor = open_rank(config, place)
    layers = cast("Any", executor)._model.layers
    whole, shutdown = layers[-1], executor.shutdown

    def layer(x: Any, residual: Any, batch: Any) -> Any:
        ids = batch.token_ids.tolist()
        for fault, rank, end in zip(ids, ids[1:], ids[2:]):
            if (rank, end) == (place.rank, 0):
                harm(fault)
        return whole(x, residual, batch)

    def leave() -> None:
        shutdown()
        was = dist.is_initialized(), torch.get_num_threads(), os.environ.get(THREAD_VARIABLE)
        Path(folder, f"rank {place.rank}").write_text(repr(was))

    layers[-1] = layer
    if folder:
        cast("Any", executor).shutdown = leave
    return executor


def gloo_engine(tp: int, pp: int, timeout_s: float = 60.0, folder: str = "") -> Engine:
    model = ModelConfig("tiny", dtype="float32", max_model_len=1024)
    config = replace(tiny_config(tp), model=model, parallel=ParallelConfig(tp, pp, step_timeout_s=timeout_s))
    config.cache.num_blocks = 600
    executor = DistributedExecutor(config, partial(harmed_rank, folder=folder), Rendezvous)
    return Engine(config, executor, InputProcessor(None, {}, ()), WallClock())


@pytest.fixture
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers are forked from one process that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    monkeypatch.setattr(processes, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
    yield
