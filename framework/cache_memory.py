"""The bytes of the KV cache: one pool of blocks, seen by every layer through its own shape."""

from __future__ import annotations

import math

import torch

from .kv_cache.spec import CacheGroup, PagedKV
from .plan import LayerKV


def allocate_caches(groups: tuple[CacheGroup, ...], num_blocks: int, block_size: int, device: torch.device) -> list[LayerKV]:
    """A LayerKV per layer, in layer order. Layer i of every group lies in the same memory: a block belongs to one group at a
    time. Keys and values are two tensors, so that each is contiguous where all groups have equal shapes."""
    specs = [group.spec for group in groups]
    if not all(isinstance(spec, PagedKV) for spec in specs):
        raise ValueError(
            "the model keeps recurrent state, for which this version has no cache; only attention layers can be served"
        )
    paged = [spec for spec in specs if isinstance(spec, PagedKV)]
    depth = max(len(group.layers) for group in groups)
    sizes = [max(_page_bytes(spec, block_size, part) for spec in paged) for part in ("k", "v")]
    memory = [[torch.zeros(num_blocks, size, dtype=torch.uint8, device=device) for size in sizes] for _ in range(depth)]
    caches: dict[int, LayerKV] = {}
    for group, spec in zip(groups, paged):
        for depth_index, layer in enumerate(group.layers):
            k, v = (_view(memory[depth_index][i], spec, block_size, part) for i, part in enumerate(("k", "v")))
            caches[layer] = LayerKV(k, v)
    return [caches[layer] for layer in range(len(caches))]


def _shape(spec: PagedKV, block_size: int, part: str) -> tuple[int, int, int]:
    return block_size, spec.num_kv_heads, spec.head_dim if part == "k" else spec.v_head_dim


def _page_bytes(spec: PagedKV, block_size: int, part: str) -> int:
    return math.prod(_shape(spec, block_size, part)) * getattr(torch, spec.dtype).itemsize


def _view(memory: torch.Tensor, spec: PagedKV, block_size: int, part: str) -> torch.Tensor:
    pages = memory[:, : _page_bytes(spec, block_size, part)].view(getattr(torch, spec.dtype))
    return pages.unflatten(1, _shape(spec, block_size, part))
