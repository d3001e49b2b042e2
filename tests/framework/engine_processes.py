"""Main functions of engine processes for tests: the real loop around a null executor (no torch, no tokenizer: they start fast), and
processes that fail."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection

import framework.build
from framework.clock import WallClock
from framework.config import EngineConfig
from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput
from framework.engine_process import run_engine
from framework.executor.null import DoneStep, NullExecutor
from framework.executor.shape import ModelShape

from .engines import MODELS

VOCAB_SIZE = 50
LOST, FAULTY = VOCAB_SIZE - 1, VOCAB_SIZE - 2
"""A prompt that begins with LOST costs the engine its device, one with FAULTY fails its step."""


class SlowExecutor(NullExecutor):
    """Takes its time for a step."""

    def __init__(self, config: EngineConfig, step_s: float) -> None:
        super().__init__(config, ModelShape(MODELS["full"], VOCAB_SIZE, 8192))
        self.step_s = step_s

    def submit(self, step: StepInput) -> DoneStep:
        for new in step.new:
            if new.token_ids[0] == LOST:
                raise DeviceLostError("the device fell off the bus")
            if new.token_ids[0] == FAULTY:
                raise FloatingPointError("the kernel failed")
        time.sleep(self.step_s)
        return super().submit(step)


def inputs() -> InputProcessor:
    return InputProcessor(None, {}, ())


def serve_null(config: EngineConfig, pipe: Connection, *, step_s: float = 0.0) -> None:
    framework.build.build_engine = lambda config: Engine(config, SlowExecutor(config, step_s), inputs(), WallClock())
    run_engine(config, pipe)


def exit_at_start(config: EngineConfig, pipe: Connection) -> None:
    os._exit(3)


def be_killed_at_start(config: EngineConfig, pipe: Connection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def load_forever(config: EngineConfig, pipe: Connection) -> None:
    def build(config: EngineConfig) -> Engine:
        print(os.getpid(), flush=True)
        time.sleep(1000)
        raise AssertionError("nobody waits so long")

    framework.build.build_engine = build
    run_engine(config, pipe)


class WeirdError(Exception):
    """Does not survive pickling."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} {where}")


def fail_weirdly(config: EngineConfig, pipe: Connection) -> None:
    def build(config: EngineConfig) -> Engine:
        raise WeirdError("odd", "thing")

    framework.build.build_engine = build
    run_engine(config, pipe)
