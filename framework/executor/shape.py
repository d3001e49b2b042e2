"""What the executors without a device have to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import EngineConfig
from ..engine.kv_cache.memory import cache_blocks, state_rows, useful_blocks
from ..engine.kv_cache.spec import CacheGroup, block_bytes, group_layers
from ..models.architecture import Architecture, Diffusion
from ..models.read import ModelInfo


@dataclass(frozen=True)
class ModelShape:
    """KV groups, vocabulary and longest sequence of a model, the bytes of a request's states, the places in the cache that it takes
    at most for what an encoder gave, how it denoises, if it does, and whether layers attend to images."""

    groups: tuple[CacheGroup, ...]
    vocab_size: int
    max_model_len: int
    state_bytes: int = 0
    most_encoded: int = 0
    diffusion: Diffusion | None = None
    sees_images: bool = False

    @classmethod
    def of(cls, model: ModelInfo, config: EngineConfig) -> ModelShape:
        """Of a model under a configuration. Raises ValueError for one that pools and that the native decoder does not cover."""
        if model.architecture is None and model.pooling is None:
            from ..models.dry_run import DryRun  # seconds to import, and needed for few models

            run = DryRun(config, model)
            return cls(run.groups, run.vocab_size, model.max_model_len, diffusion=model.diffusion)
        found = native(model, config)
        sizes = found.vocab_size, model.max_model_len, state_bytes(found, model), model.most_encoded(config.cache.block_size)
        return cls(kv_groups(found, model, config), *sizes, model.diffusion, found.sees_images)

    def num_blocks(self, config: EngineConfig) -> int:
        """As configured, or as many as fit ``cache.memory_bytes``; without either, as many as all seats can fill."""
        num_groups, each = len(self.groups), block_bytes(self.groups, config.cache.block_size)
        longest = max(self.max_model_len, self.most_encoded)
        states = state_rows(config) * self.state_bytes
        enough = each * useful_blocks(config, num_groups, longest) + states
        return cache_blocks(config, num_groups, longest, each, lambda: enough, states)


def state_bytes(architecture: Architecture, model: ModelInfo, layers: range | None = None) -> int:
    """What recurrent layers keep of a request. layers: whose; None: all layers'."""
    specs = architecture.state_specs(model.dtype)
    return sum(spec.row_bytes() for index, spec in specs.items() if layers is None or index in layers)


def native(model: ModelInfo, config: EngineConfig) -> Architecture:
    """The architecture. Raises ValueError if the native decoder does not cover it."""
    if model.architecture is None:
        raise ValueError(f"executor.kind={config.executor.kind} needs a model that the native decoder covers: {model.reason}")
    return model.architecture


def kv_groups(architecture: Architecture, model: ModelInfo, config: EngineConfig) -> tuple[CacheGroup, ...]:
    """Of a model, or of the part of it that one device holds. Raises ValueError for a cache that it cannot have."""
    architecture.check_chunks(config.cache.block_size, model.max_model_len)
    dtype = model.dtype if config.cache.dtype == "auto" else config.cache.dtype
    return group_layers(architecture.cache_specs(dtype, model.max_model_len))
