"""What a layer keeps between steps. Layers of equal spec form a group with one block table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PagedKV:
    """Keys and values of an attention layer.

    window: number of tokens a query can see, itself included (None = all); blocks that fell out of it are freed.
    """

    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    dtype: str
    window: int | None = None

    def bytes_per_token(self) -> int:
        """Of one layer; quantized caches add two float32 scales per head."""
        element = {"float32": 4, "float16": 2, "bfloat16": 2}.get(self.dtype, 1)
        scales = 8 if element == 1 else 0
        return self.num_kv_heads * ((self.head_dim + self.v_head_dim) * element + scales)


@dataclass(frozen=True)
class State:
    """Fixed-size state of a recurrent layer: one block per request, whatever its length."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: str


CacheSpec = PagedKV | State


@dataclass(frozen=True)
class CacheGroup:
    """Layers (by index) that share a spec and therefore a block table."""

    spec: CacheSpec
    layers: tuple[int, ...]


def group_layers(specs: Sequence[CacheSpec]) -> tuple[CacheGroup, ...]:
    """Groups of layers with equal specs, in order of first appearance.

    All groups draw blocks from one pool, so a block must mean the same number of bytes in each: specs with many layers are
    split into groups of as many layers as the rarest spec has (Gemma 3: 5 windowed layers for each full one), and layer i of
    every group lives in the same tensor.
    """
    layers_of: dict[CacheSpec, list[int]] = {}
    for layer, spec in enumerate(specs):
        layers_of.setdefault(spec, []).append(layer)
    size = min(map(len, layers_of.values()))
    return tuple(
        CacheGroup(spec, tuple(layers[i : i + size]))
        for spec, layers in layers_of.items()
        for i in range(0, len(layers), size)
    )


def block_bytes(groups: tuple[CacheGroup, ...], block_size: int) -> int:
    """Bytes of one block of the pool that the groups share."""
    paged = [g.spec.bytes_per_token() for g in groups if isinstance(g.spec, PagedKV)]
    return max(len(g.layers) for g in groups) * block_size * max(paged)
