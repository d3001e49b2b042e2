"""The host's part of decode attention: sizes, grids, and one call's outputs and arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton

from ...attention_meta import AttentionMeta, LayerKV
from ...devices import by_arch
from ...spec import Spec
from .._shared.attention import AttentionParams
from ._kernels import combine_kernel


class Cuts(NamedTuple):
    """How requests are cut into programs; a compile-time argument of kernels.

    GROUP        query heads that share a KV head
    ROWS         packed rows of a program
    CHUNK        keys of a split of a short request
    MAX_SPLITS   a longer request's splits grow instead
    """

    HAS_WINDOW: bool
    GROUP: int
    ROWS: int
    CHUNK: int
    MAX_SPLITS: int


@dataclass(frozen=True)
class DecodeTiles:
    """Sizes that fix how a request's keys are cut, and how a program is compiled. None depends on the batch, nor on the
    number of queries, or the bits of a row would."""

    chunk: int
    max_splits: int
    group: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_row_blocks: int
    num_sms: int
    tiles_per_sm: int
    quantized: bool

    @classmethod
    def choose(cls, spec: Spec, chunk: int, block_n: int, num_warps: int, num_stages: int) -> DecodeTiles:
        """Options of 0 follow the arch and the head size: tiles of heads above 128 have half the keys, or registers spill. A block
        has the query heads of a KV head, at least the 16 rows of a matrix instruction. Few KV heads get more splits, so that one
        long request fills the device; many would only write more partial results."""
        num_kv_heads, head_dim = spec.fact("num_kv_heads", 1), spec.fact("head_dim", 128)
        group = spec.fact("num_heads", 1) // num_kv_heads
        device, amd, wide = by_arch(spec.arch), spec.arch.startswith("gfx"), head_dim > 128
        block_n = block_n or (32 if amd or wide else 64)
        if chunk % block_n or block_n & (block_n - 1):
            raise ValueError(f"chunk must be a multiple of block_n, which is a power of two; got {chunk} and {block_n}")
        num_stages = num_stages or (2 if amd else 3)
        width = triton.next_power_of_2(head_dim) + triton.next_power_of_2(spec.fact("value_dim", head_dim))
        kv_dtype = spec.fact("kv_dtype", spec.dtype)
        tile_bytes = block_n * width * kv_dtype.itemsize
        return cls(
            chunk,
            max_splits=max(64, min(256, 512 // triton.next_power_of_2(num_kv_heads))),
            group=group,
            block_m=max(16, triton.next_power_of_2(group)),
            block_n=block_n,
            num_warps=num_warps or 4,
            num_stages=num_stages,
            max_row_blocks=1 if wide else 2,
            num_sms=device.num_sms,
            tiles_per_sm=device.shared_bytes // (tile_bytes * max(num_stages - 1, 1)),
            quantized=kv_dtype != spec.dtype,
        )

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def row_blocks(self, meta: AttentionMeta) -> int:
        """Blocks of a program: enough for the rows of every request, up to a limit, so that keys are read once for all of a
        request's drafts."""
        return min(triton.next_power_of_2(triton.cdiv(meta.max_q * self.group, self.block_m)), self.max_row_blocks)

    def num_programs(self, meta: AttentionMeta) -> int:
        """As many as the device holds at once: by the shared memory of their tiles, and by their registers."""
        by_registers = 3 if self.row_blocks(meta) < self.max_row_blocks and not self.quantized else 2
        return self.num_sms * max(1, min(by_registers * 4 // self.num_warps, self.tiles_per_sm))

    def row_grid(self, meta: AttentionMeta) -> int:
        """Upper bound of the programs that share the rows of a request."""
        return triton.cdiv(meta.max_q * self.group, self.block_m * self.row_blocks(meta))

    def cuts(self, meta: AttentionMeta, window: int | None) -> Cuts:
        return Cuts(window is not None, self.group, self.block_m * self.row_blocks(meta), self.chunk, self.max_splits)

    def splits(self, meta: AttentionMeta, window: int | None) -> int:
        """Upper bound of the splits of any request, from host integers."""
        span = meta.max_seq_len if window is None else min(meta.max_seq_len, window + meta.max_q)
        return max(1, min(self.max_splits, triton.cdiv(span, self.chunk) + (window is not None)))


class DecodeCall:
    """One call of a decode impl: its outputs, its partial results, and the arguments that the kernels share."""

    def __init__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta, params: AttentionParams, tiles: DecodeTiles) -> None:
        q = q if q.stride(2) == 1 else q.contiguous()
        num_tokens, num_heads, _ = q.shape
        dv = kv.v.shape[3]
        self.out = torch.empty(num_tokens, num_heads, dv, dtype=q.dtype, device=q.device)
        self.lse = torch.empty(num_tokens, num_heads, dtype=torch.float32, device=q.device) if params.return_lse else None
        self.meta, self.window, self.cuts = meta, params.window or 0, tiles.cuts(meta, params.window)
        rows = tiles.splits(meta, params.window) * num_tokens * num_heads
        self.partial = meta.scratch("decode_partials", rows * dv, torch.float32)  # [splits, T * Hq, Dv], for all layers
        self.partial_lse = meta.scratch("decode_partial_lse", rows, torch.float32)
        constants = params.constants(q, kv, tiles.block_m, tiles.block_n, tiles.row_blocks(meta))
        self.tensors = (
            q,
            kv.k,
            kv.v,
            kv.k_scale,
            kv.v_scale,
            self.out,
            self.lse,
            self.partial,
            self.partial_lse,
            meta.cu_q,
            meta.seq_lens,
            meta.block_table,
        )
        self.arguments: dict[str, Any] = dict(
            num_tokens=num_tokens,
            stride_qt=q.stride(0),
            stride_qh=q.stride(1),
            stride_table=meta.block_table.stride(0),
            C=constants,
            CUTS=self.cuts,
            **params.kernel_args(),
        )

    def combine(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Adds up the splits and gives the op's result."""
        num_tokens, num_heads, dv = self.out.shape
        tile = self.cuts.MAX_SPLITS // 4
        combine_kernel[(num_heads, self.meta.max_q, self.meta.num_reqs + 1)](
            self.out,
            self.lse,
            self.partial,
            self.partial_lse,
            self.meta.cu_q,
            self.meta.seq_lens,
            self.window,
            num_tokens,
            self.meta.num_reqs,
            CUTS=self.cuts,
            DV=dv,
            BLOCK_DV=triton.next_power_of_2(dv),
            TILE=tile,
            num_warps=tile // 8,
            enable_fp_fusion=True,
        )
        return self.out if self.lse is None else (self.out, self.lse)
