"""Scatter of new keys and values into the paged cache. The grid is tokens x blocks of heads; a program reads its
token's slot, leaves at once when it is -1, and copies a tile of BLOCK_HEADS x head size of k and of v through
registers, converted to the cache's dtype. Slots and cache offsets are 64-bit: caches exceed 2^31 elements. Made for
strided k and v inside a fused projection.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...attention_meta import LayerKV
from ...impl import Flags, impl
from ...spec import Spec


@triton.jit
def _copy_heads(from_ptr, to_ptr, heads, from_head, to_head, num_heads, dim, BLOCK_DIM: tl.constexpr):
    element = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (heads < num_heads) & (element < dim)
    values = tl.load(from_ptr + heads * from_head + element, mask=mask, other=0.0)
    tl.store(to_ptr + heads * to_head + element, values.to(to_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _kv_cache_write_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, page_size, num_heads, k_dim, v_dim,
    k_token, k_head, v_token, v_head, k_page, k_slot, k_cache_head, v_page, v_slot, v_cache_head, stride_slots,
    BLOCK_HEADS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token * stride_slots)
    if slot < 0:
        return
    page, offset = slot // page_size, slot % page_size
    heads = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    _copy_heads(k_ptr + token * k_token, k_cache_ptr + page * k_page + offset * k_slot, heads, k_head, k_cache_head,
                num_heads, k_dim, BLOCK_K)  # fmt: skip
    _copy_heads(v_ptr + token * v_token, v_cache_ptr + page * v_page + offset * v_slot, heads, v_head, v_cache_head,
                num_heads, v_dim, BLOCK_V)  # fmt: skip


@impl(
    "kv_cache_write",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_heads": 8},
)
class TritonKVCacheWrite:
    def __init__(self, spec: Spec, weights: object, params: object, *, block_heads: int) -> None:
        self.block_heads = block_heads

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        kind = spec.fact("kv_dtype", spec.dtype)
        return [] if kind.itemsize > 1 else [f"writes unquantized caches, not {kind}"]

    def __call__(self, k: torch.Tensor, v: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
        num_tokens, num_heads, k_dim = k.shape
        if num_tokens == 0:
            return
        assert k.stride(2) == v.stride(2) == kv.k.stride(3) == kv.v.stride(3) == 1, "head elements must be contiguous"
        v_dim, block_heads = v.shape[2], min(self.block_heads, triton.next_power_of_2(num_heads))
        _kv_cache_write_kernel[(num_tokens, triton.cdiv(num_heads, block_heads))](
            k, v, kv.k, kv.v, slot_mapping, kv.page_size, num_heads, k_dim, v_dim, k.stride(0), k.stride(1),
            v.stride(0), v.stride(1), *kv.k.stride()[:3], *kv.v.stride()[:3], slot_mapping.stride(0),
            BLOCK_HEADS=block_heads, BLOCK_K=triton.next_power_of_2(k_dim), BLOCK_V=triton.next_power_of_2(v_dim),
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
