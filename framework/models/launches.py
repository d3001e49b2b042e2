"""What a step of a model launches that the transformers library computes, with our attention, linear layers and experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..engine.kv_cache.spec import PagedKV

ELEMENTWISE = "elementwise"
"""Stands among ops for kernels that take as long as what they read and write does: all of the library's but products."""


class Launch(NamedTuple):
    """Of a kernel. op: ours; of what the library computes ``linear`` for a product, ``moe_experts`` for those of a layer's experts
    together, else ELEMENTWISE. each, fixed: rows of the call (ELEMENTWISE: bytes) for each of the rows by which launches are
    counted, and whatever their number."""

    op: str
    dims: frozenset[tuple[str, float]]
    library: bool
    each: float
    fixed: float


class Attends(NamedTuple):
    """How a layer does. dims: of its calls; spec: of what it keeps; canvases: their tokens do it twice, as they see each other."""

    dims: Mapping[str, float]
    spec: PagedKV
    canvases: bool


@dataclass(frozen=True)
class Launches:
    """Of a step, but for attention. tokens: by its tokens; logits: beside these in steps with rows of logits, by these rows; taken:
    beside these in steps whose canvases attend to copies of what windows let them see, by tokens of the cache."""

    tokens: Counter[Launch]
    logits: Counter[Launch]
    taken: Counter[Launch]
