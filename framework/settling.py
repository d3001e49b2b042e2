"""What a model, a device or a scheme settles of a configuration: fields that were left open, and what cannot be asked together."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from .config import CALIBRATED_SCHEMES, ROUNDED_SCHEMES, EngineConfig, QuantConfig
from .config_checks import require
from .engine.diffusion import DiffusionConfig
from .executor.kinds import EXECUTORS
from .executor.pseudo import possible_passes
from .models.hub import resolve_model
from .models.pooling.settings import Pooling
from .models.read import ModelInfo

Config = TypeVar("Config", bound=EngineConfig)


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
    kinds = ("local", "simulated", "null")
    refused = {
        "cache.prefix_caching=true": config.cache.prefix_caching,
        f"speculative_config.method={method}": method is not None,
        "lora.enabled=true": config.lora.enabled,
        f"parallel.tp={parallel.tp}, pp={parallel.pp}, ep={parallel.ep}": parallel.num_ranks > 1,
        f"executor.kind={config.executor.kind}": config.executor.kind not in kinds,
        f"quant.scheme={config.quant.scheme}": config.quant.scheme != "none",
    }
    if wrong := [field for field, is_asked in refused.items() if is_asked]:
        raise ValueError(
            f"{wrong[0]} cannot work: layers of {config.model.name!r} attend to what an encoder gave, and such a model is "
            f"served on one device, as it is, by executor.kind={' or '.join(kinds)}; leave it out"
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
        passes = config.executor.passes_per_canvas
        require(passes is None, "executor.passes_per_canvas", passes, f"left out: {name!r} generates token by token")
        return config
    cache, scheduler, parallel, method = config.cache, config.scheduler, config.parallel, config.speculative_config.method
    refused = {
        f"speculative_config.method={method}": method is not None,
        "lora.enabled=true": config.lora.enabled,
        f"parallel.tp={parallel.tp}, pp={parallel.pp}, ep={parallel.ep}": parallel.num_ranks > 1,
        f"executor.kind={config.executor.kind}": EXECUTORS[config.executor.kind].has_workers,
        f"scheduler.in_flight_steps={scheduler.in_flight_steps}": scheduler.in_flight_steps > 1,
    }
    if wrong := [field for field, is_asked in refused.items() if is_asked]:
        raise ValueError(
            f"{wrong[0]} cannot work: {name!r} generates by block diffusion, which is served on one device, step by step, in one "
            "process; leave it out"
        )
    size = diffusion.canvas_size
    if scheduler.max_chunk < size:
        raise ValueError(
            f"scheduler.max_num_batched_tokens={scheduler.max_num_batched_tokens} (max_chunk_tokens={scheduler.max_chunk_tokens}) "
            f"cannot work: {name!r} denoises {size} tokens of a request at a time; set {size} or more"
        )
    if (passes := config.executor.passes_per_canvas) is not None:
        least, most = possible_passes(diffusion, config.diffusion)
        expected = (
            f"from {least} to {most}, between which diffusion.threshold and max_passes leave it"
            if least < most
            else (f"left out: diffusion.threshold and max_passes leave {most}, whatever the model says")
        )
        require(least <= passes <= most and least < most, "executor.passes_per_canvas", passes, expected)
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
