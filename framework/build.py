"""Puts an engine together from its configuration."""

from __future__ import annotations

import atexit
import gc
from typing import TYPE_CHECKING

from .clock import Clock, VirtualClock, WallClock
from .config import EngineConfig, ModelConfig
from .engine.inputs import InputProcessor
from .engine.tokenizer import load_tokenizer
from .interpreter import enable_interpreter
from .models.architecture import ModelInfo, read_model
from .models.hub import resolve_model

if TYPE_CHECKING:
    from .engine.engine import Engine
    from .engine.executor import Executor


def build_engine(config: EngineConfig, clock: Clock | None = None) -> Engine:
    """The engine, with its executor and tokenizer. A simulated executor needs (and gets) a virtual clock."""
    config.validate()
    if config.interpret:
        enable_interpreter()
    from .engine.engine import Engine
    from .plan import fold_overrides

    fold_overrides(config)
    settle_block_size(config)
    if clock is None:
        clock = VirtualClock() if config.executor.kind == "simulated" else WallClock()
    model = read_model(config.model)
    inputs = input_processor(config.model, model)
    return Engine(config, build_executor(config, model, clock), inputs, clock)


def settle_block_size(config: EngineConfig, arch: str = "") -> None:
    """Replaces an automatic ``cache.block_size`` by the one for ``arch``, or for the device that the config names."""
    if config.cache.block_size:
        return
    from .plan import device_arch, device_model, preferred_block_size

    if not arch and config.executor.kind == "local":
        from .worker.local_executor import resolve_device

        arch = device_arch(resolve_device(config.device))
    elif not arch and config.executor.kind == "simulated":
        arch = device_model(config.executor.device).arch
    config.cache.block_size = preferred_block_size(arch)


def freeze_garbage() -> None:
    """For a process that serves one engine to its end: what exists now lives as long as the process, so that the collector need not
    walk it again and again during steps."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # the end of the process is to find it all


def build_executor(config: EngineConfig, model: ModelInfo, clock: Clock) -> Executor:
    """The executor of ``config.executor.kind`` for a model."""
    if config.executor.kind == "null":
        from .executor.null import NullExecutor
        from .executor.shape import ModelShape

        return NullExecutor(config, ModelShape.of(model, config))
    if config.executor.kind == "simulated":
        from .executor.simulated import SimulatedExecutor

        if not isinstance(clock, VirtualClock):
            raise ValueError("executor.kind=simulated advances time itself, so it needs a virtual clock; found a wall clock")
        return SimulatedExecutor(config, model, clock)
    from .worker.local_executor import LocalExecutor

    return LocalExecutor(config, model)


def input_processor(config: ModelConfig, model: ModelInfo) -> InputProcessor:
    """Tokenizer, default parameters and end-of-sequence ids of a model. A model described by ``architecture`` alone has no
    tokenizer, unless it borrows that of ``config.tokenizer``; where neither config names an end, the tokenizer's counts."""
    source = resolve_model(config.tokenizer, weights=False) if config.tokenizer else model.folder
    tokenizer = None if source is None or config.skip_tokenizer else load_tokenizer(source)
    eos = model.eos_token_ids
    if not eos and (found := getattr(tokenizer, "eos_token_id", None)) is not None:
        eos = (found,)
    eos = tuple(token for token in eos if token < model.config.get("vocab_size", token + 1))  # others are never sampled
    generation = model.generation if config.generation_config == "auto" else {}
    return InputProcessor(tokenizer, generation, eos, config.max_logprobs)
