"""Attention of one layer over the paged cache: its kernels, and where in a step's batch it finds what they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ...engine.kv_cache.spec import CrossKV, PagedKV
from ...plan import BoundKernel, KernelPlan
from ..batch import ForwardBatch, GroupBatch
from .chunks import in_chunks

if TYPE_CHECKING:
    from triton_kernels.attention_meta import LayerKV

    from .expanded_prefill import ExpandedPrefill


@dataclass(frozen=True)
class AttentionShape:
    """How a layer attends. scale: of q.k; window: tokens a query sees, itself included (None = all); causal: only before it, else
    on either side; aliased: values are the first v_head_dim elements of the keys; sinks: f32 [num_heads] or None; alibi: by how
    much the scores of each head fall with each token of distance; alibi_scale: its factor where it is rounded to bfloat16 (None: it
    is not); chunk: of positions, within which a query sees (None = one); position_bias: f32 [num_heads, distances] or None; cross:
    it sees what an encoder gave, and nothing else."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None = field(default=None, compare=False)
    alibi: tuple[float, ...] | None = None
    causal: bool = True
    aliased: bool = False
    chunk: int | None = None
    alibi_scale: float | None = None
    position_bias: torch.Tensor | None = field(default=None, compare=False)
    cross: bool = False


@dataclass(slots=True)
class PagedAttention:
    """Writes keys and values to the cache of its layer, and attends over it.

    layer     its place among the layers of this process; group: the KV group that serves it, see ``PagedModel.set_groups``
    spec      what it keeps in the cache
    kv_write  None where a fused kernel writes
    prefill   a kernel, or what prepares what the layer itself does with prompts
    chunk     of positions, within which a query sees; None: there is one
    whole     of tokens that see those after them, too; None: there are none
    """

    layer: int
    spec: PagedKV
    kv_write: BoundKernel | None
    decode: BoundKernel
    prefill: BoundKernel | ExpandedPrefill
    chunk: int | None = None
    group: int = 0
    whole: BoundKernel | None = None

    def begin_step(self, batch: ForwardBatch) -> None:
        """Once per step, by one layer of a group for all: lets the kernels prepare what they share. Where the layers attend within
        chunks, the group's rows are cut at them from here on."""
        group = batch.groups[self.group]
        if self.chunk is not None:
            page_size = batch.caches[self.layer].page_size
            decode, prefill = (meta and in_chunks(meta, self.chunk, page_size) for meta in (group.decode, group.prefill))
            group = batch.groups[self.group] = GroupBatch(group.slot_mapping, decode, prefill)
        if group.decode is not None:
            self.decode.begin_step(group.decode)
        if group.prefill is not None:
            self.prefill.begin_step(group.prefill)
        if self.whole is not None and group.whole is not None:
            self.whole.begin_step(group.whole.meta)

    def place(self, batch: ForwardBatch) -> tuple[LayerKV, torch.Tensor]:
        """The layer's cache, and the slots int64 [T] in it of the batch's tokens."""
        return batch.caches[self.layer], batch.groups[self.group].slot_mapping

    def write(self, k: torch.Tensor, v: torch.Tensor | None, batch: ForwardBatch) -> None:
        """k [T, Hk, Dk] and v [T, Hk, Dv] go to the cache; v is None where values are aliased."""
        assert self.kv_write is not None, "a fused kernel writes the cache of this layer"
        self.kv_write(k, v, batch.caches[self.layer], batch.groups[self.group].slot_mapping)

    def attend(self, q: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """q [T, Hq, Dk] -> [T, Hq, Dv], once keys and values of all tokens are written."""
        group, kv = batch.groups[self.group], batch.caches[self.layer]
        out = self._attend(q, kv, group, batch.num_decode_tokens)
        if self.whole is not None and group.whole is not None:
            seen = kv if group.whole.slots is None else _taken(kv, group.whole.slots)
            out.index_copy_(0, group.whole.tokens, self.whole(q[group.whole.tokens], seen, group.whole.meta))
        return out

    def _attend(self, q: torch.Tensor, kv: LayerKV, group: GroupBatch, n: int) -> torch.Tensor:
        if group.prefill is None:
            return self.decode(q, kv, group.decode)
        assert isinstance(self.prefill, BoundKernel), "the layer attends to prompts itself"
        if group.decode is None:
            return self.prefill(q, kv, group.prefill)
        return torch.cat((self.decode(q[:n], kv, group.decode), self.prefill(q[n:], kv, group.prefill)))


def _taken(kv: LayerKV, slots: torch.Tensor) -> LayerKV:
    """The tokens of a cache that lie in these slots, int64 [pages, page_size], as a cache of their own."""
    page, place = slots // kv.page_size, slots % kv.page_size
    scales = (None if scale is None else scale[page, place] for scale in (kv.k_scale, kv.v_scale))
    return type(kv)(kv.k[page, place], kv.v[page, place], *scales)


class AttentionKernels:
    """Binds the attention of a model's layers; those of equal shape share their kernels. cache_dtype: a name of torch's; device: of
    what ALiBi adds."""

    def __init__(self, plan: KernelPlan, block_size: int, cache_dtype: str, device: torch.device | None = None) -> None:
        self._plan, self.block_size, self._cache_dtype, self._device = plan, block_size, cache_dtype, device
        self._bound: dict[tuple[str, AttentionShape], BoundKernel] = {}

    def facts(self, shape: AttentionShape) -> dict[str, Any]:
        """What kernels that touch the cache are told when they are bound."""
        return {
            "head_dim": shape.head_dim,
            "num_heads": shape.num_heads,
            "num_kv_heads": shape.num_kv_heads,
            "value_dim": shape.v_head_dim,
            "page_size": self.block_size,
            "kv_dtype": getattr(torch, self._cache_dtype),
            "aliased": shape.aliased,
        }

    @property
    def takes_scales(self) -> bool:
        """Whether the cache can hold what a checkpoint's scales are for, float8."""
        return self._cache_dtype == "float8_e4m3fn"

    def layer(
        self,
        index: int,
        shape: AttentionShape,
        *,
        writes: bool = True,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
        whole: bool = False,
    ) -> PagedAttention:
        """The attention of layer ``index`` of this process. writes: it does so itself, no fused kernel does. scales: f32 [1, 1] of
        all its keys and of all its values; None: each has its own. whole: some tokens see those after them, too."""
        kept = shape.window or shape.chunk if shape.causal else None  # of a prompt that is computed whole, all is kept until then
        kind = CrossKV if shape.cross else PagedKV
        spec = kind(shape.num_kv_heads, shape.head_dim, shape.v_head_dim, self._cache_dtype, kept, shape.aliased)
        static = {} if scales is None else {"k_scale": scales[0], "v_scale": scales[1]}
        note = "" if scales is None else "scales of the checkpoint"
        write = self._bind("kv_cache_write", shape, static, note=note, shared=not static) if writes else None
        weights = {} if shape.sinks is None else {"sinks": shape.sinks}
        if shape.alibi is not None:
            weights["alibi"] = torch.tensor(shape.alibi, dtype=torch.float32, device=self._device)
        if shape.position_bias is not None:
            weights["position_bias"] = shape.position_bias
        params = {"scale": shape.scale, "causal": shape.causal, "window": shape.window, "softcap": shape.softcap}
        if shape.alibi_scale is not None:
            params["alibi_scale"] = shape.alibi_scale
        shared = shape.sinks is None
        decode, prefill = (
            self._bind(f"paged_attention_{kind}", shape, weights, params, shared=shared) for kind in ("decode", "prefill")
        )
        found = PagedAttention(index, spec, write, decode, prefill, shape.chunk)
        if whole:
            both = replace(shape, causal=False)
            found.whole = self._bind("paged_attention_prefill", both, weights, {**params, "causal": False}, shared=shared)
        return found

    def of_prompts(self, shape: AttentionShape, *, causal: bool, return_lse: bool) -> BoundKernel:
        """``paged_attention_prefill`` alone, to pages that are no layer's cache as well."""
        params = {"scale": shape.scale, "causal": causal, "window": None, "softcap": None, "return_lse": return_lse}
        return self._plan.bind("paged_attention_prefill", None, params, self.facts(shape))

    def workspace_write(self, shape: AttentionShape) -> BoundKernel:
        """``kv_cache_write`` to pages that are no layer's cache."""
        return self._bind("kv_cache_write", shape, shared=True)

    def _bind(
        self,
        op: str,
        shape: AttentionShape,
        weights: Mapping[str, torch.Tensor] | None = None,
        params: Mapping[str, Any] | None = None,
        note: str = "",
        *,
        shared: bool,
    ) -> BoundKernel:
        """shared: layers whose shapes are equal may have one kernel."""
        found = self._bound.get((op, shape)) if shared else None
        if found is None:
            found = self._plan.bind(op, weights, params, self.facts(shape), note)
            if shared:
                self._bound[op, shape] = found
        return found
