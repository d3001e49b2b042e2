"""Executors of ranks for tests, most without a model (their workers import no torch), and engines over them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

from framework.clock import WallClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ParallelConfig, SchedulerConfig
from framework.distributed.executor import DistributedExecutor
from framework.distributed.messages import Factory, Place
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput
from framework.executor.null import DoneStep, NullExecutor
from framework.executor.shape import ModelShape
from framework.models.architecture import read_model

from ..framework.engines import MODELS

VOCAB_SIZE = 50
FAULTY, KILLED, STOPPED, LOST, ENDED, LATE = range(VOCAB_SIZE - 6, VOCAB_SIZE)
"""First token of a prompt -> what its step does to the rank that the second token names: fails, is killed, is stopped, loses its
device, ends with an exception that is none of a step, fails a while after the others are done. Other ranks than the first fail alone;
of rank 0, all do."""


class FaultyRank(NullExecutor):
    """Does what prompts ask for."""

    def __init__(self, config: EngineConfig, place: Place) -> None:
        super().__init__(config, ModelShape(MODELS["full"], VOCAB_SIZE, 8192))
        self._place = place

    def submit(self, step: StepInput) -> DoneStep:
        for new in step.new:
            fault, rank = new.token_ids[:2]
            if rank == self._place.rank:
                self._fail(fault)
            elif fault == FAULTY and rank == 0:
                self._fail(fault)
            elif fault in (KILLED, STOPPED, LOST, ENDED):
                time.sleep(3600)  # as in a collective operation with a rank that is gone
        return super().submit(step)

    def _fail(self, fault: int) -> None:
        if fault == FAULTY:
            raise FloatingPointError("the kernel failed")
        if fault == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == STOPPED:
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == LOST:
            from framework.engine.errors import DeviceLostError

            raise DeviceLostError("the device fell off the bus")
        if fault == ENDED:
            raise SystemExit(3)
        if fault == LATE:
            time.sleep(0.3)
            raise FloatingPointError("the kernel failed")


class OddPlan(NullExecutor):
    """Of a rank whose kernels are others."""

    def plan_report(self) -> dict[str, dict[str, Any]]:
        return {"sample": {"impl": "torch", "choice": "torch@x:1", "version": "1", "calls": 0}}


def faulty_rank(config: EngineConfig, place: Place) -> NullExecutor:
    return FaultyRank(config, place)


def null_rank(config: EngineConfig, place: Place) -> NullExecutor:
    return NullExecutor(config, ModelShape(MODELS["full"], VOCAB_SIZE, 8192))


def odd_blocks(config: EngineConfig, place: Place) -> NullExecutor:
    """The last rank has room for fewer."""
    if place.rank == place.size - 1:
        config = replace(config, cache=replace(config.cache, num_blocks=77))
    return null_rank(config, place)


def odd_vocabulary(config: EngineConfig, place: Place) -> NullExecutor:
    return NullExecutor(config, ModelShape(MODELS["full"], VOCAB_SIZE + place.rank, 8192))


def odd_plan(config: EngineConfig, place: Place) -> NullExecutor:
    ours, shape = (OddPlan, ModelShape(MODELS["full"], VOCAB_SIZE, 8192)) if place.rank else (_Plan, ModelShape(MODELS["full"], VOCAB_SIZE, 8192))
    return ours(config, shape)


class _Plan(NullExecutor):
    def plan_report(self) -> dict[str, dict[str, Any]]:
        return {"sample": {"impl": "torch", "choice": "torch", "version": "1", "calls": 0}}


def odd_config(config: EngineConfig, place: Place) -> NullExecutor:
    """A rank that takes something else for its configuration."""
    if place.rank == 1:
        config.cache.prefix_caching = False
    return null_rank(config, place)


def failing_start(config: EngineConfig, place: Place) -> NullExecutor:
    """Rank 1 cannot, and the others would wait for it."""
    if place.rank != 1:
        time.sleep(3600)
    raise ValueError("kernels.sample='nonsense' cannot work")


def dying_start(config: EngineConfig, place: Place) -> NullExecutor:
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)
    raise AssertionError


def tiny_on_output_rank(config: EngineConfig, place: Place) -> Any:
    """The whole model on one rank; another idles along, checking the protocol."""
    model = read_model(config.model)
    if place.is_output:
        from framework.worker.local_executor import LocalExecutor

        return LocalExecutor(config, model)
    return NullExecutor(config, ModelShape.of(model, config))


def make_config(size: int = 2, backend: str = "processes", timeout_s: float = 60.0, pp: int = 1, **scheduler: Any) -> EngineConfig:
    """Of ``size`` ranks per stage."""
    return EngineConfig(
        cache=CacheConfig(block_size=4, num_blocks=100),
        scheduler=SchedulerConfig(**{"max_num_batched_tokens": 64, "max_num_seqs": 16, **scheduler}),
        executor=ExecutorConfig("distributed"),
        parallel=ParallelConfig(tp=size, pp=pp, backend=backend, step_timeout_s=timeout_s),
    )


def make_engine(config: EngineConfig, factory: Factory = faulty_rank) -> Engine:
    return Engine(config, DistributedExecutor(config, factory), InputProcessor(None, {}, ()), WallClock())
