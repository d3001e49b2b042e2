"""Copy of whole pages inside a layer's cache. The grid is page pairs x blocks of rows, a row being one head of one
token; a program moves BLOCK_ROWS x head size elements through registers. Bytes are copied, not numbers: one-byte
formats are moved as integers, which needs no support for them on the device. Page offsets are 64-bit. One launch per
tensor of the layer (keys, values, scales). Made for forks of long prompts, where many pages move at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...attention_meta import LayerKV
from ...impl import Flags, impl
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def _copy_blocks_kernel(
    cache_ptr,
    src_ptr,
    dst_ptr,
    page_size,
    num_heads,
    dim,
    stride_page,
    stride_token,
    stride_head,
    stride_src,
    stride_dst,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    source, target = (tl.load(src_ptr + pair * stride_src).to(tl.int64), tl.load(dst_ptr + pair * stride_dst).to(tl.int64))
    row = (tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    element = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < page_size * num_heads) & (element < dim)
    within = (row // num_heads).to(tl.int64) * stride_token + row % num_heads * stride_head + element
    tl.store(cache_ptr + target * stride_page + within, tl.load(cache_ptr + source * stride_page + within, mask=mask), mask=mask)


_LAUNCH = Launch(_copy_blocks_kernel, num_warps=4, enable_fp_fusion=True)


@impl("copy_blocks", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block_rows": 32})
def copy_blocks(kv: LayerKV, src: torch.Tensor, dst: torch.Tensor, *, block_rows: int) -> None:
    if src.shape[0] == 0:
        return
    for cache in kv.stored():
        pages = cache if cache.dim() == 4 else cache.unsqueeze(2)  # scales [pages, page_size, heads]: one row per token
        pages = pages.view(torch.uint8) if pages.element_size() == 1 else pages
        _, page_size, num_heads, dim = pages.shape
        assert pages.stride(3) == 1, "the last dimension of a cache must be contiguous"
        _LAUNCH(
            (src.shape[0], cdiv(page_size * num_heads, block_rows)),
            pages,
            src,
            dst,
            page_size,
            num_heads,
            dim,
            *pages.stride()[:3],
            src.stride(0),
            dst.stride(0),
            BLOCK_ROWS=block_rows,
            BLOCK_DIM=next_power_of_2(dim),
        )
