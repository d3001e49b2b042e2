"""Executors of ranks for tests, most without a model (their workers import no torch), and engines over them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import numpy as np

from framework.clock import WallClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.distributed.executor import DistributedExecutor
from framework.distributed.messages import Factory, Place
from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError
from framework.engine.executor import LoadedAdapter
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput
from framework.executor.null import DoneStep, NullExecutor
from framework.executor.shape import ModelShape
from framework.lora_request import LoRARequest
from framework.models.read import read_model

from ..framework.engines import MODELS

VOCAB_SIZE = 50
FAULTY, KILLED, STOPPED, LOST, ENDED, LATE, APART = range(VOCAB_SIZE - 7, VOCAB_SIZE)
"""First token of a prompt -> what its step does to the rank that the second token names: it fails (of rank 0: all do), is killed,
is stopped, loses its device, ends, fails a while after the others are done; or all fail, each in its own way. Of one that is gone
the others wait for ever."""


SHAPE = ModelShape(MODELS["full"], VOCAB_SIZE, 8192)


class FaultyRank(NullExecutor):
    """Does what prompts ask for."""

    def __init__(self, config: EngineConfig, place: Place) -> None:
        super().__init__(config, SHAPE)
        self._place = place

    def submit(self, step: StepInput) -> DoneStep:
        for new in step.new:
            fault, rank = [*new.token_ids, 0][:2]
            if fault == APART:
                raise FloatingPointError(f"the kernel failed, called {self._place.rank} times")
            if rank == self._place.rank or (fault == FAULTY and rank == 0):
                harm(fault)
            elif fault in (KILLED, STOPPED, LOST, ENDED):
                time.sleep(3600)  # as in a collective operation with a rank that is gone
        return super().submit(step)


def harm(fault: int) -> None:
    """What is to happen to this rank; nothing where it is no fault."""
    if fault == FAULTY:
        raise FloatingPointError("the kernel failed")
    if fault == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == STOPPED:
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == LOST:
        raise DeviceLostError("the device fell off the bus")
    if fault == ENDED:
        raise SystemExit(3)
    if fault == LATE:
        time.sleep(0.3)
        raise FloatingPointError("the kernel failed")


class PlannedRank(NullExecutor):
    """Says that it runs a kernel, with other options on every rank but the first two."""

    def __init__(self, config: EngineConfig, place: Place) -> None:
        super().__init__(config, SHAPE)
        self._rank = place.rank

    def plan_report(self) -> dict[str, dict[str, Any]]:
        sample = {"impl": "torch", "choice": f"torch@tiles:{max(self._rank, 1)}", "version": "1", "calls": self._rank}
        return {"sample": sample, f"op_{self._rank}": sample}


class IdleStep(DoneStep):
    """Samples nothing, whatever it may."""

    def sample(self, masks: np.ndarray) -> None:
        assert masks.dtype == np.int32


class IdleRank(NullExecutor):
    def submit(self, step: StepInput) -> IdleStep:
        return IdleStep(super().submit(step).result())


class AdapterRank(NullExecutor):
    """Reads adapters in a thread of its own. Of folders that end in its rank's number it reads nothing; of those that end in
    different it finds another than the others."""

    def __init__(self, config: EngineConfig, place: Place) -> None:
        super().__init__(config, SHAPE)
        self._rank, self._thread = place.rank, ThreadPoolExecutor(1)
        self.held: Counter[str] = Counter()
        HOSTS.append(self.held)

    def load_adapter(self, request: LoRARequest) -> Any:
        return self._thread.submit(self._read, request.lora_path)

    def drop_adapter(self, key: str) -> None:
        assert self.held[key] > 0, "it is not held"
        self.held[key] -= 1

    def _read(self, path: str) -> LoadedAdapter:
        if path.endswith(str(self._rank)):
            raise ValueError(f"{path} has no adapter_config.json")
        key = f"{path}/{self._rank}" if path.endswith("different") else path
        self.held[key] += 1
        return LoadedAdapter(key, 1, 10)


HOSTS: list[Counter[str]] = []
"""Of ranks that are threads: what each has on its host."""


def adapter_rank(config: EngineConfig, place: Place) -> NullExecutor:
    return AdapterRank(config, place)


def faulty_rank(config: EngineConfig, place: Place) -> NullExecutor:
    return FaultyRank(config, place)


def planned_rank(config: EngineConfig, place: Place) -> NullExecutor:
    return PlannedRank(config, place)


def null_rank(config: EngineConfig, place: Place) -> NullExecutor:
    return NullExecutor(config, SHAPE)


def small_last_rank(config: EngineConfig, place: Place) -> NullExecutor:
    """It has room for fewer blocks. Each has weights of as many bytes as its number says."""
    if place.rank == place.size - 1:
        config = replace(config, cache=replace(config.cache, num_blocks=77))
    executor = NullExecutor(config, SHAPE)
    executor.weight_bytes = executor.nominal_weight_bytes = place.rank
    return executor


def odd_vocabulary(config: EngineConfig, place: Place) -> NullExecutor:
    return NullExecutor(config, ModelShape(MODELS["full"], VOCAB_SIZE + place.rank, 8192))


def failing_start(config: EngineConfig, place: Place) -> NullExecutor:
    """Rank 1 cannot, and the others would wait for it."""
    if place.rank != 1:
        time.sleep(3600)
    raise ValueError("kernels.sample='nonsense' cannot work")


class MeetingRanks:
    """Threads of which the last fails while the others wait for it."""

    def __init__(self) -> None:
        from triton_kernels.group import ThreadGroup

        self._groups = ThreadGroup.make(2)

    def __call__(self, config: EngineConfig, place: Place) -> NullExecutor:
        if place.rank:
            raise ValueError("kernels.sample='nonsense' cannot work")
        self._groups[0].barrier()
        raise AssertionError

    def abort(self, reason: str) -> None:
        self._groups[0].abort(reason)


def dying_start(config: EngineConfig, place: Place) -> NullExecutor:
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)
    raise AssertionError


def stopped_start(config: EngineConfig, place: Place) -> NullExecutor:
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return NullExecutor(config, SHAPE)


def endless_start(config: EngineConfig, place: Place) -> NullExecutor:
    if place.rank == 1:
        time.sleep(3600)
    return NullExecutor(config, SHAPE)


def tiny_on_output_rank(config: EngineConfig, place: Place) -> Any:
    """The whole model on one rank; another idles along, checking the protocol."""
    model = read_model(config.model)
    if place.is_output:
        from framework.worker.local_executor import LocalExecutor

        return LocalExecutor(config, model)
    return IdleRank(config, ModelShape.of(model, config))


def tiny_config(tp: int) -> EngineConfig:
    """Of a model whose ranks are threads."""
    return EngineConfig(
        ModelConfig("tiny", dtype="float32", max_model_len=160),
        CacheConfig(block_size=4, num_blocks=100),
        SchedulerConfig(max_num_seqs=8),
        executor=ExecutorConfig("distributed"),
        parallel=ParallelConfig(tp=tp, backend="threads"),
        kernels={"default": "reference"},
        num_threads=1,
        device="cpu",
    )


class FailingLayer:
    """Makes ranks of the model of ``tiny_config``; the second layer of some fails where it sees ``token``."""

    token = 42

    def __init__(self, tp: int, ranks: Sequence[int]) -> None:
        from framework.worker.rank import ThreadRanks

        self._open, self._ranks = ThreadRanks(tp, 1), ranks
        self.abort = self._open.abort

    def __call__(self, config: EngineConfig, place: Place) -> Any:
        executor = self._open(config, place)
        layers = cast("Any", executor)._model.layers
        whole = layers[1]

        def layer(x: Any, residual: Any, batch: Any) -> Any:
            if self.token in batch.token_ids.tolist():
                raise FloatingPointError("the kernel failed")
            return whole(x, residual, batch)

        if place.rank in self._ranks:
            layers[1] = layer
        return executor


def make_config(size: int = 2, backend: str = "processes", timeout_s: float = 60.0, pp: int = 1, **scheduler: Any) -> EngineConfig:
    """Of ``size`` ranks per stage."""
    return EngineConfig(
        cache=CacheConfig(block_size=4, num_blocks=3000),
        scheduler=SchedulerConfig(**{"max_num_batched_tokens": 64, "max_num_seqs": 16, **scheduler}),
        executor=ExecutorConfig("distributed"),
        parallel=ParallelConfig(tp=size, pp=pp, backend=backend, step_timeout_s=timeout_s),
    )


def make_engine(config: EngineConfig, factory: Factory = faulty_rank) -> Engine:
    return Engine(config, DistributedExecutor(config, factory), InputProcessor(None, {}, ()), WallClock())
