"""The host's part of decode attention: sizes, grids, and one layer's launches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...attention_meta import AttentionMeta, LayerKV
from ...devices import by_arch
from ...spec import Spec
from .._shared.attention import AttentionParams, shares_tiles, unsupported_attention
from .._shared.launch import Launch, cdiv, next_power_of_2
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
        """Options of 0 follow the arch and the head size: tiles of heads above 128 have half the keys, or registers spill. On AMD
        those of quantized caches have too, and half the warps, because each warp converts the whole tile. A block has the query
        heads of a KV head, at least the 16 rows of a matrix instruction. Few KV heads get more splits, so that one long request
        fills the device; many would only write more partial results. Of latent keys, whose values are as wide as they, a block has
        as many heads as have room for what they sum; the partial results of many heads are as large as the keys, so that they get
        fewer and longer splits."""
        num_kv_heads, head_dim = spec.fact("num_kv_heads", 1), spec.fact("head_dim", 128)
        group = spec.fact("num_heads", 1) // num_kv_heads
        kv_dtype = spec.fact("kv_dtype", spec.dtype)
        device, amd, wide, quantized = by_arch(spec.arch), spec.arch.startswith("gfx"), head_dim > 128, kv_dtype != spec.dtype
        latent = head_dim > 256
        heads_in_blocks = cdiv(group, 16) if latent else 1
        few_keys = latent and (amd or device.arch == "sm_100")
        block_n = block_n or (16 if few_keys or (amd and quantized) else 32 if amd or wide else 64)
        block_m = max(16, next_power_of_2(group))
        if latent:
            block_m = min(block_m, 32 if amd or device.arch.startswith("sm_8") else 64)
        chunk = chunk or max(256, 128 * heads_in_blocks if latent else 0)
        if chunk % block_n or block_n & (block_n - 1):
            raise ValueError(f"chunk must be a multiple of block_n, which is a power of two; got {chunk} and {block_n}")
        num_stages = num_stages or (2 if amd else 3)
        value_dim = spec.fact("value_dim", head_dim)
        width = head_dim if shares_tiles(spec) else next_power_of_2(head_dim) + next_power_of_2(value_dim)
        tile_bytes = block_n * width * kv_dtype.itemsize
        return cls(
            chunk,
            max_splits=max(64, min(256, 512 // next_power_of_2(num_kv_heads * heads_in_blocks))),
            group=group,
            block_m=block_m,
            block_n=block_n,
            num_warps=num_warps or (2 if amd and quantized and not wide else 8 if block_m > 16 and latent and not amd else 4),
            num_stages=num_stages,
            max_row_blocks=1 if wide else 2,
            num_sms=device.num_sms,
            tiles_per_sm=device.shared_bytes // (tile_bytes * max(num_stages - 1, 1)),
            quantized=quantized,
        )

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def row_blocks(self, meta: AttentionMeta) -> int:
        """Blocks of a program: enough for the rows of every request, up to a limit, so that keys are read once for all of a
        request's drafts."""
        return min(next_power_of_2(cdiv(meta.max_q * self.group, self.block_m)), self.max_row_blocks)

    def num_programs(self, meta: AttentionMeta) -> int:
        """As many as the device holds at once: by the shared memory of their tiles, and by their registers."""
        by_registers = 3 if self.row_blocks(meta) < self.max_row_blocks and not self.quantized else 2
        return self.num_sms * max(1, min(by_registers * 4 // self.num_warps, self.tiles_per_sm))

    def row_grid(self, meta: AttentionMeta) -> int:
        """Upper bound of the programs that share the rows of a request."""
        return cdiv(meta.max_q * self.group, self.block_m * self.row_blocks(meta))

    def cuts(self, row_blocks: int, window: int | None) -> Cuts:
        return Cuts(window is not None, self.group, self.block_m * row_blocks, self.chunk, self.max_splits)

    def splits(self, meta: AttentionMeta, window: int | None) -> int:
        """Upper bound of the splits of any request, from host integers."""
        span = meta.max_seq_len if window is None else min(meta.max_seq_len, window + meta.max_q)
        return max(1, min(self.max_splits, cdiv(span, self.chunk) + (window is not None)))


class DecodeLaunches(NamedTuple):
    """What one layer launches: its impl's own kernel, and the combination of splits."""

    attend: Launch
    combine: Launch


class DecodeLayer:
    """One layer's decode attention. An impl gives ``kernel``, its grid, and what it takes behind the block table.

    cuts   by the number of row blocks of a program: how its requests are cut
    """

    kernel: Any

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        self.params = AttentionParams.of(spec, weights, params)
        self.tiles = DecodeTiles.choose(spec, **options)
        self.cuts = {1 << i: self.tiles.cuts(1 << i, self.params.window) for i in range(self.tiles.max_row_blocks.bit_length())}
        self._launches: dict[tuple[Hashable, ...], DecodeLaunches] = {}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return unsupported_attention(spec)

    def grid(self, kv: LayerKV, meta: AttentionMeta) -> tuple[int, ...]:
        raise NotImplementedError

    def work(self, meta: AttentionMeta) -> tuple[torch.Tensor, ...]:
        """What the step prepared for the impl's kernel."""
        return ()

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        q = q if q.stride(2) == 1 else q.contiguous()
        num_tokens, num_heads, _ = q.shape
        dv, num_reqs = kv.v.shape[3], meta.num_reqs
        launches = self.launches(q, kv, self.tiles.row_blocks(meta))
        out = q.new_empty(num_tokens, num_heads, dv)
        lse = q.new_empty(num_tokens, num_heads, dtype=torch.float32) if self.params.return_lse else None
        rows = self.tiles.splits(meta, self.params.window) * num_tokens * num_heads
        partial = meta.scratch("decode_partials", rows * dv, torch.float32)  # [splits, T * Hq, Dv], for all layers
        partial_lse = meta.scratch("decode_partial_lse", rows, torch.float32)
        if num_reqs:
            launches.attend(
                self.grid(kv, meta),
                q,
                *kv,
                out,
                lse,
                partial,
                partial_lse,
                meta.cu_q,
                meta.seq_lens,
                meta.block_table,
                *self.work(meta),
                num_tokens,
                *q.stride()[:2],
                meta.block_table.stride(0),
            )
        grid = (num_heads, meta.max_q, num_reqs + 1)
        launches.combine(grid, out, lse, partial, partial_lse, meta.cu_q, meta.seq_lens, num_tokens, num_reqs)
        return out if lse is None else (out, lse)

    def launches(self, q: torch.Tensor, kv: LayerKV, row_blocks: int) -> DecodeLaunches:
        """Those for q and a cache of such shapes."""
        key = (row_blocks, *self.params.shapes(q, kv))
        found = self._launches.get(key)
        if found is None:
            found = self._launches[key] = self._freeze(q, kv, row_blocks)
        return found

    def _freeze(self, q: torch.Tensor, kv: LayerKV, row_blocks: int) -> DecodeLaunches:
        params, tiles, cuts, dv = self.params, self.tiles, self.cuts[row_blocks], kv.v.shape[3]
        constants = params.constants(q, kv, tiles.block_m, tiles.block_n, row_blocks)
        attend = Launch(self.kernel, **params.kernel_args(), C=constants, CUTS=cuts, **tiles.launch)
        combine = Launch(
            combine_kernel,
            window=params.window or 0,
            CUTS=cuts,
            DV=dv,
            BLOCK_DV=next_power_of_2(dv),
            TILE=cuts.MAX_SPLITS // (4 if dv <= 256 else 32),
            num_warps=cuts.MAX_SPLITS // 32,
            enable_fp_fusion=True,
        )
        return DecodeLaunches(attend, combine)
