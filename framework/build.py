"""Puts an engine together from its configuration."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .clock import Clock, VirtualClock, WallClock
from .config import CALIBRATED_SCHEMES, ROUNDED_SCHEMES, EngineConfig, ModelConfig, ParallelConfig, QuantConfig
from .config_checks import require
from .engine.diffusion import Denoising, DiffusionConfig
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
from .models.pooling.settings import Pooling
from .models.read import ModelInfo, read_model
from .multimodal.processor import ImagePrompts
from .multimodal.support import images_refusal
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

Config = TypeVar("Config", bound=EngineConfig)
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
    config, model = settle_diffusion(config, model), with_passes(config, model)
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
    config, inputs, pooling = first.config, first.inputs, first.pooling
    return [first, *(Engine(config, each, inputs, each.clock, None, _speculation(config, each), pooling) for each in others)]


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


def settle_block_size(config: Config, arch: str | None = None) -> Config:
    """The config with its automatic ``cache.block_size`` replaced by the one for ``arch``, or for what its steps run on."""
    if config.cache.block_size:
        return config
    from .plan import preferred_block_size

    if arch is None:
        _, arch = EXECUTORS[config.executor.kind].load().runs_on(config)
    return replace(config, cache=replace(config.cache, block_size=preferred_block_size(arch)))


def settle_sharing(config: EngineConfig, model: ModelInfo) -> EngineConfig:
    """The config with ``cache.prefix_caching`` settled: a state is of all tokens before it, so that of a model that keeps states
    prefixes are shared only where their states are kept, and no draft is taken back. Raises ValueError where one is asked for all
    the same."""
    asked, num_snapshots = config.cache.prefix_caching, config.cache.state_snapshots
    has_states, name = model.architecture is not None and model.architecture.has_states, config.model.name
    require(has_states or not num_snapshots, "cache.state_snapshots", num_snapshots, f"0: no layers of {name!r} keep states")
    if model.encoding is not None or model.diffusion is not None:
        return config
    if not has_states:
        return replace(config, cache=replace(config.cache, prefix_caching=asked is not False))
    why = f"layers of {name!r} keep states"
    if asked and not num_snapshots:
        raise ValueError(
            f"cache.prefix_caching=true cannot work: {why}, and cache.state_snapshots=0 keeps none of them for other requests; "
            "raise that, or leave it out"
        )
    if model.pooling is not None and num_snapshots:
        raise ValueError(f"cache.state_snapshots={num_snapshots} cannot work: {name!r} pools; leave it out")
    if (method := config.speculative_config.method) is not None:
        raise ValueError(
            f"speculative_config.method={method} cannot work: {why}, from which no wrong draft can be taken back; leave it out"
        )
    return replace(config, cache=replace(config.cache, prefix_caching=num_snapshots > 0))


def settle_encoding(config: EngineConfig, model: ModelInfo) -> EngineConfig:
    """The config with ``cache.prefix_caching`` settled for a model with layers that attend to what an encoder gave: what it
    computes of tokens depends on that. Raises ValueError for what such a model cannot have."""
    if model.encoding is None:
        return config
    parallel, method = config.parallel, config.speculative_config.method
    refused = {
        "cache.prefix_caching=true": config.cache.prefix_caching,
        f"speculative_config.method={method}": method is not None,
        "lora.enabled=true": config.lora.enabled,
        f"parallel.tp={parallel.tp}, pp={parallel.pp}, ep={parallel.ep}": parallel.num_ranks > 1,
        f"executor.kind={config.executor.kind}": config.executor.kind != "local",
        f"quant.scheme={config.quant.scheme}": config.quant.scheme != "none",
    }
    if wrong := [field for field, is_asked in refused.items() if is_asked]:
        raise ValueError(
            f"{wrong[0]} cannot work: layers of {config.model.name!r} attend to what an encoder gave, and such a model is "
            "served on one device, as it is, by executor.kind=local; leave it out"
        )
    return replace(config, cache=replace(config.cache, prefix_caching=False))


def settle_diffusion(config: EngineConfig, model: ModelInfo) -> EngineConfig:
    """The config with what a model of block diffusion settles: each step waits for the tokens of the one before, and a prefix is
    shared where blocks hold whole canvases, whose tokens depend on no later ones. Raises ValueError for what such a model cannot
    have, and for ``diffusion`` of another model."""
    name, diffusion = config.model.name, model.diffusion
    if diffusion is None:
        for field, default in vars(DiffusionConfig()).items():
            if (found := getattr(config.diffusion, field)) != default:
                raise ValueError(f"diffusion.{field}={found} cannot work: {name!r} generates token by token; leave it out")
        return config
    cache, scheduler, parallel, method = config.cache, config.scheduler, config.parallel, config.speculative_config.method
    refused = {
        f"speculative_config.method={method}": method is not None,
        "lora.enabled=true": config.lora.enabled,
        f"parallel.tp={parallel.tp}, pp={parallel.pp}, ep={parallel.ep}": parallel.num_ranks > 1,
        f"executor.kind={config.executor.kind}": config.executor.kind != "local",
        f"scheduler.in_flight_steps={scheduler.in_flight_steps}": scheduler.in_flight_steps > 1,
    }
    if wrong := [field for field, is_asked in refused.items() if is_asked]:
        raise ValueError(
            f"{wrong[0]} cannot work: {name!r} generates by block diffusion, which is served on one device, step by step, by "
            "executor.kind=local; leave it out"
        )
    size = diffusion.canvas_size
    if scheduler.max_chunk < size:
        raise ValueError(
            f"scheduler.max_num_batched_tokens={scheduler.max_num_batched_tokens} (max_chunk_tokens={scheduler.max_chunk_tokens}) "
            f"cannot work: {name!r} denoises {size} tokens of a request at a time; set {size} or more"
        )
    why = None
    if diffusion.redraws is not None:
        default = DiffusionConfig().threshold
        require(
            config.diffusion.threshold == default,
            "diffusion.threshold",
            config.diffusion.threshold,
            f"left out: {name!r} goes by entropies, which its generation_config.json bounds",
        )
    elif diffusion.causal_prompt:
        why = f"{name!r} sees of a token in a prompt something else than of the same token in an output (block_causal_prompt=false)"
    elif cache.block_size % size:
        why = (
            f"a block of {cache.block_size} tokens holds no whole canvases of {size}; set cache.block_size to a multiple of {size}"
        )
    if why is not None and cache.prefix_caching:
        raise ValueError(f"cache.prefix_caching=true cannot work: {why}, or leave it out")
    shares = cache.prefix_caching is not False and why is None
    return replace(config, cache=replace(cache, prefix_caching=shares), scheduler=replace(scheduler, in_flight_steps=1))


def with_passes(config: EngineConfig, model: ModelInfo) -> ModelInfo:
    """The model with ``diffusion.max_passes`` in place of what its generation_config.json says, where it draws canvases anew."""
    diffusion, asked = model.diffusion, config.diffusion.max_passes
    if diffusion is None or diffusion.redraws is None or not asked:
        return model
    return replace(model, diffusion=replace(diffusion, redraws=replace(diffusion.redraws, max_passes=asked)))


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
    sound = None
    if encoding.speech is not None:
        if model.folder is None:
            raise ValueError(
                f"model {model.name!r} listens, and has no folder with a feature extractor: give one that has (model.name)"
            )
        sound = SoundFeatures(model.folder)
    return EncoderPrompts(encoding.max_tokens, encoding.start, sound, encoding.speech)


def settle_pooling(config: EngineConfig, pooling: Pooling) -> EngineConfig:
    """The config with what a model that pools settles: where tokens see those after them, prompts are computed whole; and a cached
    prefix is of use only where nothing but the last token counts. Raises ValueError for what has no meaning there."""
    if config.speculative_config.method is not None:
        raise ValueError(
            f"speculative_config.method={config.speculative_config.method} cannot work: {config.model.name!r} pools, and "
            "there are no tokens to guess; leave it out"
        )
    if config.lora.enabled:
        raise ValueError(f"lora.enabled=true cannot work: {config.model.name!r} pools, and adapters are of models that generate")
    scheduler = replace(config.scheduler, chunked_prefill=config.scheduler.chunked_prefill and pooling.causal)
    shares = config.cache.prefix_caching is not False and pooling.causal and pooling.kind == "LAST"
    return replace(config, scheduler=scheduler, cache=replace(config.cache, prefix_caching=shares))


def pooling_rules(config: EngineConfig, model: ModelInfo, tokenizer: Any) -> PoolingRules | None:
    """What may be asked of a model that pools; None for one that generates."""
    if model.pooling is None:
        return None
    architecture, most = model.architecture, config.scheduler.max_chunk
    if architecture is None:
        return model.pooling.rules(0, 0, most, tokenizer)
    return model.pooling.rules(architecture.hidden_size, architecture.num_token_types, most, tokenizer)


def settle_quantization(config: EngineConfig) -> EngineConfig:
    """The config with the model replaced by its quantized checkpoint, where the scheme needs calibration: made now, or at an
    earlier start. Raises ValueError for a model that has no checkpoint of floats to begin with."""
    if config.quant.scheme not in CALIBRATED_SCHEMES:
        return config
    if config.model.load_format == "dummy":
        raise ValueError(
            f"quant.scheme={config.quant.scheme} is made from a checkpoint, and model.load_format=dummy has none: choose one of "
            f"the schemes that round weights ({', '.join(ROUNDED_SCHEMES)})"
        )
    from .quantize import cached_checkpoint  # seconds to import, and needed by few engines

    source = resolve_model(config.model.name, config.model.revision)
    model = replace(config.model, name=str(cached_checkpoint(str(source), config.quant)), revision=None)
    return replace(config, model=model, quant=QuantConfig(fuse=config.quant.fuse))


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


def _image_prompts(model: ModelInfo, tokenizer: Any, engine: EngineConfig | None) -> tuple[ImagePrompts | None, str]:
    """None, and why, where images are not taken."""
    if model.vision is None:
        return None, "the model reads text alone"
    if engine is None:
        return None, "nothing that runs takes them"
    if (refusal := images_refusal(engine)) is not None:
        return None, refusal
    if model.folder is None or tokenizer is None:
        return None, "the model has no folder with a processor and a tokenizer; give one that has (model.name)"
    try:
        most, given, views = engine.model.limit_mm_per_prompt.get("image"), asdict(model.vision), None
        tile, _ = given.pop("tile"), given.pop("max_tiles")
        if model.encoding is not None:
            most, views = model.encoding.max_images, ImageViews(tile, engine.cache.block_size)
        return ImagePrompts(model.folder, model.config, tokenizer, **given, views=views, most=most), ""
    except ValueError as error:
        return None, str(error)
