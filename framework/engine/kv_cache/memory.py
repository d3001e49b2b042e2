"""How many blocks a cache has: the same arithmetic for devices that are here and for those that are not."""

from __future__ import annotations

from collections.abc import Callable

from ...config import MAX_BLOCKS, EngineConfig


def cache_budget(free: int, total: int, activations: int, fraction: float) -> int:
    """Bytes that the cache may take of a device with ``total``, of which ``free`` are left beside the weights and whatever else is
    there, so that all of it and the ``activations`` of the largest step take ``fraction``. Negative if they do already."""
    return int(free - activations - (1 - fraction) * total)


def state_rows(config: EngineConfig) -> int:
    """Of recurrent layers' states: one per request that runs, and per prefix whose states are kept."""
    return config.scheduler.max_num_seqs + config.cache.state_snapshots


def logit_rows(config: EngineConfig, canvas_size: int = 1) -> int:
    """Of the largest step. canvas_size: where a model denoises, tokens of a canvas."""
    return min(config.scheduler.max_num_seqs * canvas_size, config.scheduler.max_num_batched_tokens)


def useful_blocks(config: EngineConfig, num_groups: int, max_model_len: int) -> int:
    """What all seats can fill, and the null block; no more than lists can hold."""
    return min(num_groups * config.scheduler.max_num_seqs * -(-max_model_len // config.cache.block_size) + 1, MAX_BLOCKS)


def cache_blocks(
    config: EngineConfig, num_groups: int, max_model_len: int, each: int, budget: Callable[[], int], states: int = 0
) -> int:
    """As configured, else as many blocks of ``each`` bytes (0: of a stage whose layers have no cache) as fit ``cache.memory_bytes``
    or, without it, ``budget()``, beside ``states`` bytes for what recurrent layers keep (``state_rows``); never more than are
    useful, and of a model that has no cache the null block alone. Raises ValueError if fewer than 2 fit, or not even the states."""
    cache = config.cache
    if num_groups and cache.num_blocks is not None:
        return cache.num_blocks
    if not states and not num_groups:
        return 1
    available = budget() if cache.memory_bytes is None else cache.memory_bytes
    if states > available:
        kept = f" and cache.state_snapshots={cache.state_snapshots} prefixes" if cache.state_snapshots else ""
        raise ValueError(
            f"the cache's memory budget of {available} bytes does not hold the states of "
            f"scheduler.max_num_seqs={config.scheduler.max_num_seqs} requests{kept}, which take {states} bytes: lower that, or "
            "raise cache.memory_bytes (or cache.memory_fraction)"
        )
    if not num_groups:
        return 1
    if not each:
        return useful_blocks(config, num_groups, max_model_len)
    fitting = (available - states) // each
    if fitting < 2:
        beside = f" beside {states} bytes of states" if states else ""
        raise ValueError(
            f"the KV cache's memory budget of {available} bytes holds {max(fitting, 0)} blocks of {each} bytes{beside}, but 2 are "
            "needed: raise cache.memory_bytes (or cache.memory_fraction), or lower cache.block_size"
        )
    return min(fitting, useful_blocks(config, num_groups, max_model_len))
