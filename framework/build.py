"""Puts an engine together from its configuration."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

from .clock import Clock, VirtualClock, WallClock
from .config import EngineConfig, ModelConfig, ParallelConfig
from .engine.diffusion import Denoising
from .engine.encoding import EncoderPrompts, ImageViews
from .engine.executor import PredictsSteps
from .engine.images import ImageProcessor
from .engine.inputs import InputProcessor
from .engine.pooling import PoolingRules
from .engine.redrawing import Redrawing
from .engine.router import ROUTERS
from .engine.sound import SoundFeatures
from .engine.speculation import Speculation
from .engine.tokenizer import load_tokenizer
from .executor.kinds import EXECUTORS
from .interpreter import enable_interpreter
from .models.hub import resolve_model
from .models.read import ModelInfo, read_model
from .multimodal.places import ImagePlaces
from .multimodal.processor import ImagePrompts
from .multimodal.sized import SizedImages
from .multimodal.support import images_refusal
from .settling import (
    settle_block_size,
    settle_diffusion,
    settle_encoding,
    settle_pooling,
    settle_quantization,
    settle_sharing,
    with_passes,
)
from .speculation.depth import depth_of
from .speculation.table import proposer_kind
from .structured.backends.protocol import Vocabulary
from .structured.compiler import GrammarCompiler
from .structured.matchers import Matchers

if TYPE_CHECKING:
    from .distributed.executor import DistributedExecutor
    from .engine.engine import Engine
    from .engine.executor import Executor
    from .engine.lockstep import LockstepEngine

PROCESSES_PER_CPU = 8
"""More than so many would be a mistake: each imports torch and holds a model, or a part of one."""


def build_engine(config: EngineConfig, clock: Clock | None = None, kernels: Mapping[str, str] | None = None) -> Engine:
    """The engine, with its executor and tokenizer. An executor that advances time itself needs (and gets) a virtual clock.

    config   is not changed; ``Engine.config`` is the engine's own, with nothing left to settle
    kernels  op -> choice: explicit ones, which come before ``override`` and the config's
    """
    config.validate()
    if config.parallel.num_engines > 1:
        raise ValueError(f"parallel.dp={config.parallel.dp} is several engines: LLM and AsyncEngine start them, this builds one")
    check_processes(config)
    kind = EXECUTORS[config.executor.kind]
    if clock is None:
        clock = VirtualClock() if kind.virtual_clock else WallClock()
    elif kind.virtual_clock and not isinstance(clock, VirtualClock):
        raise ValueError(
            f"executor.kind={config.executor.kind} advances time itself, so it needs a virtual clock; found a wall clock"
        )
    if config.interpret:
        enable_interpreter()
    from .engine.engine import Engine
    from .plan import fold_choices, refuse_named_kernels

    config = settle_block_size(fold_choices(config, kernels))
    if kind.has_device:
        config = settle_quantization(config)
    else:
        refuse_named_kernels(config)
    model = read_model(config.model)
    config = settle_sharing(config, model)
    config = settle_encoding(config, model)
    model = with_passes(config, model)
    config = settle_diffusion(config, model)
    if model.pooling is not None:
        config = settle_pooling(config, model.pooling)
    inputs = input_processor(config.model, model, config)
    executor = kind.load().open(config, model, clock)
    pooling = pooling_rules(config, model, inputs.tokenizer)
    if config.parallel.num_schedulers > 1:
        return cast("Engine", _lockstep_engine(config, executor, inputs, clock))
    matchers = _matchers(config, inputs, executor.vocab_size) if kind.has_device and pooling is None else None
    denoising = _denoising(config, model, executor.vocab_size)
    engine = Engine(config, executor, inputs, clock, matchers, _speculation(config, executor, matchers), pooling, denoising)
    if (probes := getattr(engine.executor, "probes", None)) is not None:
        engine.watch(probes.around_step)
    return engine


def _lockstep_engine(config: EngineConfig, executor: DistributedExecutor, inputs: InputProcessor, clock: Clock) -> LockstepEngine:
    from .distributed.lockstep import LockstepExecutor
    from .engine.engine import Engine
    from .engine.lockstep import LockstepEngine

    lockstep = LockstepExecutor(executor)
    engines = [
        Engine(config, cast("Executor", member), inputs, clock, _matchers(config, inputs, executor.vocab_size))
        for member in lockstep.members
    ]
    return LockstepEngine(engines, lockstep.flush, ROUTERS[config.router](config.seed))


def _matchers(config: EngineConfig, inputs: InputProcessor, vocab_size: int) -> Matchers | None:
    """None for an engine without a tokenizer."""
    if inputs.tokenizer is None:
        return None
    vocabulary = Vocabulary(inputs.tokenizer, vocab_size, tuple(sorted(inputs.eos_token_ids)))
    spec = config.speculative_config
    num_forced = spec.num_speculative_tokens if spec.place == "host" else 0
    return Matchers(GrammarCompiler(config.structured_outputs, vocabulary), vocab_size, num_forced)


def _speculation(config: EngineConfig, executor: Executor, matchers: Matchers | None = None) -> Speculation | None:
    """None for an engine that has none. Executors without a model make up how many drafts are right, and so need none."""
    spec = config.speculative_config
    if not executor.num_drafts or spec.method is None:
        return None
    kind, has_model = proposer_kind(spec.method), EXECUTORS[config.executor.kind].has_device
    proposer = kind.load()(spec) if kind.place == "host" and has_model else None
    depth = depth_of(spec, executor.step_time if isinstance(executor, PredictsSteps) else None)
    forced = None if proposer is None or matchers is None else matchers.forced
    return Speculation(depth, executor.vocab_size, proposer, executor.draft_max_model_len, forced)


def build_replicas(config: EngineConfig) -> list[Engine]:
    """As many engines as ``parallel.num_engines``, in this process; each of several has a virtual clock of its own, and so must be
    of a kind that has one."""
    if config.parallel.num_engines == 1:
        return [build_engine(config)]
    from .engine.engine import Engine

    first = build_engine(replace(config, parallel=replace(config.parallel, dp=1)))
    clocks = [VirtualClock() for _ in range(1, config.parallel.dp)]
    executor: Any = first.executor
    assert EXECUTORS[config.executor.kind].virtual_clock, "others are replicas.Replicas"
    others = [executor.replica(clock, i) for i, clock in enumerate(clocks, 1)]
    config, inputs, rules = first.config, first.inputs, (first.pooling, first.denoising)
    return [first, *(Engine(config, each, inputs, each.clock, None, _speculation(config, each), *rules) for each in others)]


def replica_configs(config: EngineConfig) -> list[EngineConfig]:
    """Of each of ``parallel.num_engines``, as they are beside each other on one machine: with GPUs, and a port, after those of
    the one before, with their part of the processors, and a simulated one with noise of its own."""
    parallel, kind = config.parallel, EXECUTORS[config.executor.kind]
    if kind.has_device:
        config = settle_quantization(config)  # once, not by each
    num_threads = config.num_threads
    if kind.has_device and not kind.has_workers:
        num_threads = num_threads or max(1, (os.cpu_count() or 1) // parallel.dp)

    def of(index: int) -> EngineConfig:
        first = parallel.first_device + index * parallel.tp * parallel.pp if kind.has_device else 0
        step_timeout_s = parallel.step_timeout_s if kind.has_workers else ParallelConfig.step_timeout_s
        port = parallel.port + index if parallel.port else 0
        own = replace(parallel, dp=1, first_device=first, step_timeout_s=step_timeout_s, port=port)
        seed = config.seed + index * kind.virtual_clock
        return replace(config, parallel=own, router=EngineConfig.router, num_threads=num_threads, seed=seed)

    return [of(index) for index in range(parallel.dp)]


def check_processes(config: EngineConfig) -> None:
    """Raises ValueError for more of them than this machine could run beside each other."""
    parallel, num_cpus = config.parallel, os.cpu_count() or 1
    has_processes = EXECUTORS[config.executor.kind].has_workers and parallel.backend == "processes"
    count = parallel.num_engines * (parallel.num_ranks if has_processes else 1)
    if count > PROCESSES_PER_CPU * num_cpus:
        asked = ", ".join(f"parallel.{name}={size}" for name in ("tp", "pp", "dp") if (size := getattr(parallel, name)) > 1)
        raise ValueError(
            f"{asked} cannot work: this machine with {num_cpus} processors would have to run {count} processes beside each other; "
            f"ask for {PROCESSES_PER_CPU * num_cpus} at most ({PROCESSES_PER_CPU} each)"
        )


def _denoising(config: EngineConfig, model: ModelInfo, vocab_size: int) -> Denoising | None:
    """None for a model that generates token by token."""
    if (diffusion := model.diffusion) is None:
        return None
    if (redraws := diffusion.redraws) is not None:
        return Redrawing(diffusion.canvas_size, vocab_size, redraws)
    assert diffusion.mask_token_id is not None, "what is settled stands among masks"
    return Denoising(diffusion.canvas_size, diffusion.mask_token_id, config.diffusion)


def encoder_prompts(model: ModelInfo) -> EncoderPrompts | None:
    """None for a model that is no encoder-decoder."""
    if (encoding := model.encoding) is None or encoding.max_images is not None:
        return None
    sound = None if encoding.speech is None or model.folder is None else SoundFeatures(model.folder)
    return EncoderPrompts(encoding.max_tokens, encoding.start, sound, encoding.speech, encoding.num_bins)


def pooling_rules(config: EngineConfig, model: ModelInfo, tokenizer: Any) -> PoolingRules | None:
    """What may be asked of a model that pools; None for one that generates."""
    if model.pooling is None:
        return None
    architecture, most = model.architecture, config.scheduler.max_chunk
    if architecture is None:
        return model.pooling.rules(0, 0, most, tokenizer)
    return model.pooling.rules(architecture.hidden_size, architecture.num_token_types, most, tokenizer)


def freeze_garbage() -> None:
    """For a process that serves one engine to its end: what exists now lives as long as the process, so that the collector need not
    walk it again and again during steps."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # the end of the process is to find it all


def input_processor(config: ModelConfig, model: ModelInfo, engine: EngineConfig | None = None) -> InputProcessor:
    """Tokenizer, default parameters and end-of-sequence ids of a model. A model described by ``architecture`` alone has no
    tokenizer, unless it borrows that of ``config.tokenizer``; where neither config names an end, the tokenizer's counts. engine:
    that the prompts are for; None: none, so that they have no images."""
    source = resolve_model(config.tokenizer, weights=False) if config.tokenizer else model.folder
    tokenizer = None if source is None or config.skip_tokenizer else load_tokenizer(source)
    eos = model.eos_token_ids
    if not eos and (found := getattr(tokenizer, "eos_token_id", None)) is not None:
        eos = (found,)
    eos = tuple(token for token in eos if 0 <= token < model.config.get("vocab_size", token + 1))  # others are never sampled
    generation = model.generation if config.generation_config == "auto" else {}
    towers = None if model.pooling is None else model.pooling.towers
    images = None if towers is None or model.folder is None else ImageProcessor(model.folder, towers.image_size)
    prompts, refusal = _image_prompts(model, tokenizer, engine)
    has_logits = engine is None or EXECUTORS[engine.executor.kind].has_device
    most = config.max_logprobs if has_logits else None
    mask = None if model.diffusion is None else model.diffusion.mask_token_id
    rules = encoder_prompts(model), model.diffusion is not None, mask
    return InputProcessor(tokenizer, generation, eos, most, images, prompts, refusal, *rules)


def _image_prompts(model: ModelInfo, tokenizer: Any, engine: EngineConfig | None) -> tuple[ImagePlaces | None, str]:
    """None, and why, where images are not taken."""
    if model.vision is None:
        return None, "the model reads text alone"
    if engine is None:
        return None, "nothing that runs takes them"
    if (refusal := images_refusal(engine)) is not None:
        return None, refusal
    has_device = EXECUTORS[engine.executor.kind].has_device
    if (model.folder is None and has_device) or (model.folder is not None and tokenizer is None):
        return None, "the model has no folder with a processor and a tokenizer; give one that has (model.name)"
    try:
        most, given, views = engine.model.limit_mm_per_prompt.get("image"), asdict(model.vision), None
        tile, _ = given.pop("tile"), given.pop("max_tiles")
        if model.encoding is not None:
            most, views = model.encoding.max_images, ImageViews(tile, engine.cache.block_size)
        if model.folder is None:
            return SizedImages(engine.model, model, views, most), ""
        return ImagePrompts(model.folder, model.config, tokenizer, **given, views=views, most=most), ""
    except ValueError as error:
        return None, str(error)
