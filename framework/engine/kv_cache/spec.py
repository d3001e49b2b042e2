"""What a layer keeps between steps: a cache, where layers of equal spec form a group with one block table, or states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1}
"""Of a cache, by the names that torch has for its dtypes. Those of one byte are quantized: a float32 scale per token and head."""


@dataclass(frozen=True)
class PagedKV:
    """Keys and values of an attention layer.

    dtype: a name in ELEMENT_BYTES
    window: number of tokens a query can see, itself included (None = all); blocks that fell out of it are freed.
    aliased: the values are the first v_head_dim elements of the keys, stored once (latent attention)
    Raises ValueError for a quantized cache whose values are aliased, which no kernel reads.
    """

    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    dtype: str
    window: int | None = None
    aliased: bool = False

    def __post_init__(self) -> None:
        assert not self.aliased or self.v_head_dim <= self.head_dim, "values cannot be wider than the keys they lie in"
        if self.aliased and self.is_quantized:
            raise ValueError(
                f"cache.dtype={self.dtype} cannot work: the model keeps keys and values as one latent, of which no kernel reads "
                "quantized values; set cache.dtype=auto, float16, bfloat16 or float32"
            )

    @property
    def is_quantized(self) -> bool:
        return ELEMENT_BYTES[self.dtype] == 1

    def part_bytes(self) -> tuple[int, ...]:
        """Bytes that a token takes in one layer: its keys, its values, their scales."""
        element, scale = ELEMENT_BYTES[self.dtype], 4 if self.is_quantized else 0
        values = 0 if self.aliased else self.v_head_dim * element
        return tuple(self.num_kv_heads * n for n in (self.head_dim * element, values, scale, scale))


@dataclass(frozen=True)
class State:
    """What a recurrent layer keeps of a request, whatever its length: a tensor of each of ``shapes``, in the dtype beside it (names
    in ELEMENT_BYTES). States lie in tensors of their own, a row per seat, outside of the pool of blocks."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    def row_bytes(self) -> int:
        """Of a request."""
        return sum(math.prod(shape) * ELEMENT_BYTES[dtype] for shape, dtype in zip(self.shapes, self.dtypes, strict=True))


@dataclass(frozen=True)
class CacheGroup:
    """Layers (by index) that share a spec and therefore a block table."""

    spec: PagedKV
    layers: tuple[int, ...]


def group_layers(specs: Sequence[PagedKV | None]) -> tuple[CacheGroup, ...]:
    """Groups of layers with equal specs, in order of first appearance; None: a layer without a cache, which is in no group.

    All groups draw blocks from one pool, so a block must mean the same number of bytes in each: specs with many layers are
    split into groups of as many layers as the rarest spec has (Gemma 3: 5 windowed layers for each full one), and layer i of
    every group lives in the same tensor.
    """
    layers_of: dict[PagedKV, list[int]] = {}
    for layer, spec in enumerate(specs):
        if spec is not None:
            layers_of.setdefault(spec, []).append(layer)
    size = min(map(len, layers_of.values()), default=1)
    return tuple(
        CacheGroup(spec, tuple(layers[i : i + size])) for spec, layers in layers_of.items() for i in range(0, len(layers), size)
    )


def own_groups(groups: Sequence[CacheGroup], layers: range) -> tuple[CacheGroup, ...]:
    """The groups with those of their layers that a stage has, counted from its first; some may be without any."""
    return tuple(replace(g, layers=tuple(layer - layers.start for layer in g.layers if layer in layers)) for g in groups)


def block_bytes(groups: tuple[CacheGroup, ...], block_size: int) -> int:
    """Bytes of one block of the pool that the groups share."""
    return max((len(g.layers) for g in groups), default=0) * block_size * token_bytes(groups)


def token_bytes(groups: tuple[CacheGroup, ...]) -> int:
    """Bytes of a token in one layer."""
    return sum(shared_part_bytes(groups))


def shared_part_bytes(groups: tuple[CacheGroup, ...]) -> tuple[int, ...]:
    """Bytes of a token in one layer, part by part, where the layers of all groups have room."""
    return tuple(map(max, zip(*(g.spec.part_bytes() for g in groups))))
