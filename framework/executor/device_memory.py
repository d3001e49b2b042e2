"""How many blocks a simulated device's cache has: what weights and activations leave of its memory, as on a real one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..config import EngineConfig
from ..engine.kv_cache.memory import cache_blocks, cache_budget, logit_rows, state_rows
from ..engine.kv_cache.spec import ELEMENT_BYTES, CacheGroup, shared_part_bytes
from ..models.architecture import Architecture
from ..models.ranks import Stage


@dataclass(frozen=True)
class Holding:
    """Bytes of one device of a stage: its weights, and those of a draft model; of a token in its layers' cache; of a request's
    states."""

    weights: float
    token: int
    states: int = 0


def token_bytes(groups: tuple[CacheGroup, ...], stage: Stage) -> int:
    """Of a token's place in the pool of a device of the stage, which holds the stage's part of every group's layers."""
    depth = max((sum(layer in stage.layers for layer in group.layers) for group in groups), default=0)
    return depth * sum(shared_part_bytes(groups))


def activation_bytes(rank: Architecture, config: EngineConfig, dtype: str) -> int:
    """Estimate of what the largest step holds at once beside weights and cache: of every token the hidden state, its residual and
    the widest pair of inputs and outputs of a layer; logits of every seat, or of its canvas, as they come and as float32."""
    element = ELEMENT_BYTES[dtype]
    qkv = (rank.num_heads + 2 * rank.num_kv_heads) * rank.head_dim
    inner = max((layer.moe.intermediate_size * layer.moe.top_k if layer.moe else rank.intermediate_size) for layer in rank.layers)
    widest = max(qkv + rank.num_heads * rank.head_dim, 3 * inner if rank.family.gated else 2 * inner)
    tokens = config.scheduler.max_num_batched_tokens * (2 * rank.hidden_size + widest) * element
    num_logits = logit_rows(config, rank.diffusion.canvas_size if rank.diffusion else 1)
    return tokens + num_logits * rank.vocab_size * (element + 4)


def num_blocks(
    config: EngineConfig, num_groups: int, longest: int, holdings: Sequence[Holding], activations: int, memory_bytes: int | None
) -> int:
    """As configured, else as many as fit every device: ``cache.memory_bytes`` of each, or what is left of its memory. longest:
    most places that a request takes in a group. Raises ValueError if there is none left, and says how many devices would do."""

    def budget(holding: Holding) -> int:
        if memory_bytes is None:
            raise ValueError(
                f"executor.device={config.executor.device} is not in the device table, so its memory is not known: give "
                "cache.num_blocks or cache.memory_bytes"
            )
        left = cache_budget(int(memory_bytes - holding.weights), memory_bytes, activations, config.cache.memory_fraction)
        if left <= 0:
            raise ValueError(_too_small(config, holdings, activations, memory_bytes))
        return left

    size, rows = config.cache.block_size, state_rows(config)
    return min(
        cache_blocks(config, num_groups, longest, holding.token * size, partial(budget, holding), rows * holding.states)
        for holding in holdings
    )


def _too_small(config: EngineConfig, holdings: Sequence[Holding], activations: int, memory_bytes: int) -> str:
    gib, tp = 2**30, config.parallel.tp
    usable = config.cache.memory_fraction * memory_bytes - activations
    needed = f"{math.ceil(tp * sum(held.weights for held in holdings) / usable)} GPUs" if usable > 0 else "larger GPUs"
    allowed, weights = config.cache.memory_fraction * memory_bytes, max(held.weights for held in holdings)
    return (
        f"{tp * len(holdings)} x {config.executor.device} of {memory_bytes / gib:.0f} GiB cannot hold the model: a device has "
        f"{weights / gib:.1f} GiB of weights and {activations / gib:.1f} GiB of activations, and may use {allowed / gib:.1f} GiB "
        f"(cache.memory_fraction={config.cache.memory_fraction}). It needs at least {needed}: raise parallel.tp or parallel.pp, or "
        "choose a quant.scheme with fewer bits"
    )
