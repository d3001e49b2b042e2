"""What the executors without a device have to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import EngineConfig
from ..engine.kv_cache.spec import CacheGroup, CacheSpec, PagedKV, block_bytes, group_layers
from ..models.architecture import ModelInfo


@dataclass(frozen=True)
class ModelShape:
    """KV groups, vocabulary and longest sequence of a model."""

    groups: tuple[CacheGroup, ...]
    vocab_size: int
    max_model_len: int

    @classmethod
    def of(cls, model: ModelInfo, config: EngineConfig) -> ModelShape:
        """Of a model under a configuration. Raises ValueError for a model that the native decoder does not cover."""
        if model.architecture is None:
            raise ValueError(f"executor.kind={config.executor.kind} needs a model that the native decoder covers: {model.reason}")
        found = model.architecture
        dtype = model.dtype if config.cache.dtype == "auto" else config.cache.dtype
        specs: list[CacheSpec] = [
            PagedKV(found.num_kv_heads, found.head_dim, found.head_dim, dtype, layer.window) for layer in found.layers
        ]
        return cls(group_layers(specs), found.vocab_size, model.max_model_len)

    def num_blocks(self, config: EngineConfig) -> int:
        """As configured, or as many as fit ``cache.memory_bytes``; without either, as many as all seats can fill."""
        size = config.cache.block_size
        if config.cache.num_blocks is not None:
            return config.cache.num_blocks
        if config.cache.memory_bytes is not None:
            fitting = config.cache.memory_bytes // block_bytes(self.groups, size)
            if fitting < 2:
                raise ValueError(
                    f"cache.memory_bytes={config.cache.memory_bytes} holds {fitting} blocks of "
                    f"{block_bytes(self.groups, size)} bytes, but at least 2 are needed"
                )
            return fitting
        return 1 + len(self.groups) * config.scheduler.max_num_seqs * -(-self.max_model_len // size)
