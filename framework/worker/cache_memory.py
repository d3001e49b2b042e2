"""The bytes of the KV cache: one pool of blocks, which every layer sees as pages of its own shape; and of states."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..engine.kv_cache.spec import CacheGroup, PagedKV, State, shared_part_bytes
from ..logs import memory_size
from ..plan import LayerKV
from .devices import Device

STATE_PAGE_WIDTH = 128
"""Most elements of a head in a page that is a row of states: what copies pages holds whole heads in registers."""


def allocate_caches(groups: tuple[CacheGroup, ...], num_blocks: int, block_size: int, device: torch.device) -> dict[int, LayerKV]:
    """A LayerKV for each layer of the groups. Layer i of every group lies in the same memory: a block belongs to one group at a
    time. Keys, values and the scales of each are tensors of their own, so that each is contiguous where all groups have equal
    shapes."""
    depth = max((len(group.layers) for group in groups), default=0)
    memory = [
        [torch.zeros(num_blocks, block_size * size, dtype=torch.uint8, device=device) for size in shared_part_bytes(groups)]
        for _ in range(depth)
    ]
    caches: dict[int, LayerKV] = {}
    for group in groups:
        for parts, layer in zip(memory, group.layers):
            caches[layer] = _layer(parts, group.spec, block_size)
    return caches


def allocate_states(specs: Mapping[int, State], num_rows: int, device: torch.device) -> dict[int, tuple[torch.Tensor, ...]]:
    """The states of each layer, [seats and snapshots, ...] each. What is in them does not matter: nobody reads a row before its
    request's first tokens have written it."""
    return {
        layer: tuple(
            torch.zeros(num_rows, *shape, dtype=getattr(torch, dtype), device=device)
            for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)
        )
        for layer, spec in specs.items()
    }


def state_pages(states: Mapping[int, tuple[torch.Tensor, ...]]) -> list[LayerKV]:
    """The same memory, by layer, as the pages of a cache, each as large as a row, for what copies pages."""

    def pages(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(len(rows), -1, 1, math.gcd(math.prod(rows.shape[1:]), STATE_PAGE_WIDTH))

    return [LayerKV(*map(pages, of_layer)) for of_layer in states.values()]


def _layer(parts: list[torch.Tensor], spec: PagedKV, block_size: int) -> LayerKV:
    dtype, heads = getattr(torch, spec.dtype), (block_size, spec.num_kv_heads)
    k = _view(parts[0], dtype, (*heads, spec.head_dim))
    if spec.aliased:
        return LayerKV(k, k[..., : spec.v_head_dim])
    v = _view(parts[1], dtype, (*heads, spec.v_head_dim))
    if not spec.is_quantized:
        return LayerKV(k, v)
    return LayerKV(k, v, *(_view(part, torch.float32, heads) for part in parts[2:]))


def _view(memory: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The pages of a layer: of each block as many bytes as one of ``shape`` takes."""
    return memory[:, : math.prod(shape) * dtype.itemsize].view(dtype).unflatten(1, shape)


def check_cache_fits(num_blocks: int, needed: int, states: int, device: Device) -> None:
    """Raises ValueError for a cache of ``needed`` bytes, and ``states`` beside it, that the device has no memory for, before they
    are allocated."""
    memory = device.memory()
    if memory is not None and needed + states > memory.available:
        beside = f" and states {memory_size(states)}" if states else ""
        raise ValueError(
            f"a KV cache of {num_blocks} blocks takes {memory_size(needed)}{beside}, but {device.name} has "
            f"{memory_size(memory.available)} available beside the weights, of {memory_size(memory.total)}: lower cache.num_blocks "
            f"(or cache.memory_bytes){', or scheduler.max_num_seqs or cache.state_snapshots' if states else ''}, or free some"
        )
