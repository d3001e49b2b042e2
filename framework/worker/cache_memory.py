"""The bytes of the KV cache: one pool of blocks, which every layer sees as pages of its own shape."""

from __future__ import annotations

import math

import torch

from ..engine.kv_cache.spec import CacheGroup, PagedKV, shared_part_bytes
from ..plan import LayerKV


def allocate_caches(groups: tuple[CacheGroup, ...], num_blocks: int, block_size: int, device: torch.device) -> list[LayerKV]:
    """A LayerKV per layer, in layer order. Layer i of every group lies in the same memory: a block belongs to one group at a
    time. Keys, values and the scales of each are tensors of their own, so that each is contiguous where all groups have equal
    shapes."""
    specs = [group.spec for group in groups]
    if not all(isinstance(spec, PagedKV) for spec in specs):
        raise ValueError(
            "the model keeps recurrent state, for which this version has no cache; only attention layers can be served"
        )
    paged = [spec for spec in specs if isinstance(spec, PagedKV)]
    depth = max(len(group.layers) for group in groups)
    memory = [
        [torch.zeros(num_blocks, block_size * size, dtype=torch.uint8, device=device) for size in shared_part_bytes(groups)]
        for _ in range(depth)
    ]
    caches: dict[int, LayerKV] = {}
    for group, spec in zip(groups, paged):
        for parts, layer in zip(memory, group.layers):
            caches[layer] = _layer(parts, spec, block_size)
    return [caches[layer] for layer in range(len(caches))]


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
