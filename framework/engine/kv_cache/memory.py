"""How many blocks a cache has: the same arithmetic for devices that are here and for those that are not."""

from __future__ import annotations

from collections.abc import Callable

from ...config import EngineConfig


def cache_budget(free: int, total: int, activations: int, fraction: float) -> int:
    """Bytes that the cache may take of a device with ``total``, of which ``free`` are left beside the weights and whatever else is
    there, so that all of it and the ``activations`` of the largest step take ``fraction``. Negative if they do already."""
    return int(free - activations - (1 - fraction) * total)


def useful_blocks(config: EngineConfig, num_groups: int, max_model_len: int) -> int:
    """What all seats can fill, and the null block."""
    return num_groups * config.scheduler.max_num_seqs * -(-max_model_len // config.cache.block_size) + 1


def cache_blocks(config: EngineConfig, num_groups: int, max_model_len: int, each: int, budget: Callable[[], int]) -> int:
    """As configured, else as many blocks of ``each`` bytes as fit ``cache.memory_bytes`` or, without it, ``budget()``; never more
    than are useful. Raises ValueError if fewer than 2 fit."""
    cache = config.cache
    if cache.num_blocks is not None:
        return cache.num_blocks
    available = budget() if cache.memory_bytes is None else cache.memory_bytes
    fitting = available // each
    if fitting < 2:
        raise ValueError(
            f"the KV cache's memory budget of {available} bytes holds {max(fitting, 0)} blocks of {each} bytes, but 2 are needed: "
            "raise cache.memory_bytes (or cache.memory_fraction), or lower cache.block_size"
        )
    return min(fitting, useful_blocks(config, num_groups, max_model_len))
