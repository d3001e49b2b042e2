"""Stand-ins for kernel libraries that need a GPU: their published contracts in plain torch, and what they refuse.

Each raises where the library would (dtypes, strides, page sizes), and gives what is easily mistaken as the library gives it: the
LSE's layout and base, what a row without keys holds, which tokens a window counts.
"""

from __future__ import annotations

import importlib.machinery
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

HALVES = (torch.float16, torch.bfloat16)
NAN = float("nan")


def require(condition: bool, what: str) -> None:
    if not condition:
        raise RuntimeError(what)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    left: int,
    right: int,
    softcap: float,
    alibi: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request, queries aligned to the end of the keys. Returns f64 [n, H, D] and the natural LSE [H, n]; query i sees the
    keys from i + L - n - left to i + L - n + right (-1: no limit). Rows that see nothing are 0 and -inf."""
    num_queries, num_heads, _ = q.shape
    length, group = keys.shape[0], num_heads // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = torch.arange(length) - (torch.arange(num_queries)[:, None] + length - num_queries)
    if alibi is not None:
        scores = scores - alibi.double()[:, None, None] * ahead.abs()
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    scores = scores.masked_fill(hidden, -torch.inf)
    lse = torch.logsumexp(scores, -1) if length else torch.full((num_heads, num_queries), -torch.inf, dtype=torch.float64)
    weights = torch.exp(scores - torch.where(lse.isfinite(), lse, 0.0)[..., None])
    return torch.einsum("hqk,khd->qhd", weights, values), lse


def paged(cache: torch.Tensor, pages: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` tokens of a request whose pages are ``pages``."""
    return cache[pages[: -(-length // cache.shape[1])].long()].flatten(0, 1)[:length]


class Flash:
    """FlashAttention over pages, both versions. ``empty_lse``: what a row without keys gets; ``page_unit`` divides page sizes."""

    def __init__(self, empty_lse: float, page_unit: int) -> None:
        self.empty_lse, self.page_unit = empty_lse, page_unit

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts: torch.Tensor,
        lengths: list[int],
        table: torch.Tensor,
        max_q: int,
        scale: float,
        causal: bool,
        window: tuple[int, int],
        softcap: float,
        alibi: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q [T, H, D] -> out [T, H, Dv], natural LSE f32 [H, T]."""
        require(q.dtype in HALVES and k.dtype == v.dtype == q.dtype, "only fp16 and bf16, all alike")
        require(q.stride(-1) == k.stride(-1) == v.stride(-1) == table.stride(-1) == 1, "last dimensions must be contiguous")
        require(starts.dtype == table.dtype == torch.int32 and starts.is_contiguous(), "int32 indices")
        require(k.shape[1] % self.page_unit == 0, f"page size must be a multiple of {self.page_unit}")
        require(q.shape[2] % 8 == 0 and q.shape[2] <= 256 and table.shape[0] == len(lengths), "shapes")
        require(alibi is None or alibi.dtype == torch.float32, "slopes are f32")
        require(int(starts.diff().max()) <= max_q, "more queries than max_seqlen_q")
        out = torch.empty(*q.shape[:2], v.shape[-1], dtype=q.dtype)
        lse = torch.empty(q.shape[1], q.shape[0])
        for r, length in enumerate(lengths):
            rows = slice(int(starts[r]), int(starts[r + 1]))
            keys, values = paged(k, table[r], length), paged(v, table[r], length)
            right = 0 if causal else window[1]
            o, natural = attend(q[rows], keys, values, scale=scale, left=window[0], right=right, softcap=softcap, alibi=alibi)
            out[rows], lse[:, rows] = o.to(q.dtype), natural.masked_fill(natural == -torch.inf, self.empty_lse).float()
        return out, lse


def flash_attn() -> ModuleType:
    """FlashAttention 2.8."""
    flash = Flash(math.inf, 256)

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):  # type: ignore[no-untyped-def]
        require(cu_seqlens_k.dtype == torch.int32 and cu_seqlens_k.is_contiguous(), "int32 indices")
        require(k.shape[-1] == v.shape[-1], "one head size")
        lengths = cu_seqlens_k.diff().tolist()
        require(max(lengths) <= max_seqlen_k, "longer than max_seqlen_k")
        out, lse = flash(
            q, k, v, cu_seqlens_q, lengths, block_table, max_seqlen_q, softmax_scale, causal, window_size, softcap, alibi_slopes
        )
        return (out, lse, torch.empty(0)) if return_attn_probs else out

    def flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        block_table=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        rotary_interleaved=True,
        alibi_slopes=None,
        num_splits=0,
        return_softmax_lse=False,
    ):  # type: ignore[no-untyped-def]
        num_reqs, num_queries = q.shape[:2]
        require(k_cache.shape[-1] == v_cache.shape[-1] and cache_seqlens.dtype == torch.int32, "shapes and dtypes")
        starts = torch.arange(0, (num_reqs + 1) * num_queries, num_queries, dtype=torch.int32)
        out, lse = flash(
            q.flatten(0, 1),
            k_cache,
            v_cache,
            starts,
            cache_seqlens.tolist(),
            block_table,
            num_queries,
            softmax_scale,
            causal,
            window_size,
            softcap,
            alibi_slopes,
        )
        out, lse = out.unflatten(0, (num_reqs, num_queries)), lse.unflatten(1, (num_reqs, num_queries)).transpose(0, 1)
        return (out, lse) if return_softmax_lse else out

    return module("flash_attn", flash_attn_varlen_func, flash_attn_with_kvcache)


def flash_attn_interface() -> ModuleType:
    """FlashAttention 3."""
    flash = Flash(-math.inf, 1)

    def flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        qv=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        page_table=None,
        cu_seqlens_q=None,
        cu_seqlens_k_new=None,
        max_seqlen_q=None,
        rotary_seqlens=None,
        q_descale=None,
        k_descale=None,
        v_descale=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        attention_chunk=0,
        softcap=0.0,
        rotary_interleaved=True,
        scheduler_metadata=None,
        num_splits=0,
        pack_gqa=None,
        sm_margin=0,
        return_softmax_lse=False,
    ):  # type: ignore[no-untyped-def]
        dk, dv = k_cache.shape[-1], v_cache.shape[-1]
        require(dk == dv or dk <= 64 or (128 < dk <= 192 and 96 < dv <= 128), "head sizes")
        require(cache_seqlens.dtype == torch.int32 and cache_seqlens.is_contiguous(), "int32 indices")
        out, lse = flash(
            q,
            k_cache,
            v_cache,
            cu_seqlens_q,
            cache_seqlens.tolist(),
            page_table,
            max_seqlen_q,
            softmax_scale,
            causal,
            window_size,
            softcap,
        )
        return (out, lse, None, None) if return_softmax_lse else out

    return module("flash_attn_interface", flash_attn_with_kvcache)


class _Wrapper:
    """A FlashInfer wrapper: plan, then run as often as there are layers."""

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = "NHD", **options: Any) -> None:
        require(kv_layout == "NHD" and float_workspace_buffer.dtype == torch.uint8, "a workspace of bytes, NHD")
        require(bool((float_workspace_buffer[:64] == 0).all()), "the workspace must be zero at first")
        self.options, self.num_plans = options, 0

    def keep(self, starts: Any, ends: Any, indices: Any, last: Any, heads: int, kv_heads: int, dim: int, page: int) -> None:
        self.num_plans += 1
        require(heads % kv_heads == 0 and dim in (64, 128, 256), "head sizes and groups")
        require(all(x.dtype == torch.int32 for x in (starts, ends, indices, last)), "int32 indices")
        require(len(indices) == int(ends[-1]) and len(last) == len(ends) - 1 == len(starts) - 1, "lengths of the CSR arrays")
        full = (ends.diff() - 1).clamp_min(0) * page
        require(bool(((last >= 1) | (ends.diff() == 0)).all()) and bool((last <= page).all()), "1 <= last_page_len <= page_size")
        self.starts, self.ends, self.indices, self.lengths, self.heads = starts, ends, indices, (full + last).tolist(), heads

    def compute(self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], return_lse: bool) -> Any:
        k, v = cache
        require(q.dtype == self.q_dtype and k.dtype == v.dtype == self.kv_dtype and q.dtype in HALVES, "planned dtypes")
        require(k.stride() == v.stride() and k.shape == v.shape, "k and v have one set of strides")
        require(q.shape[0] == int(self.starts[-1]) and q.shape[1] == self.heads, "q as planned")
        out, lse = torch.full_like(q, NAN, memory_format=torch.contiguous_format), torch.full(q.shape[:2], NAN)
        for r, length in enumerate(self.lengths):
            rows = slice(int(self.starts[r]), int(self.starts[r + 1]))
            pages = self.indices[int(self.ends[r]) : int(self.ends[r + 1])]
            if length:  # rows without keys hold anything
                o, natural = attend(
                    q[rows],
                    paged(k, pages, length),
                    paged(v, pages, length),
                    scale=self.scale,
                    left=self.left,
                    right=0 if self.causal else -1,
                    softcap=self.softcap,
                )
                out[rows], lse[rows] = o.to(q.dtype), (natural.T / math.log(2)).float()
        return (out, lse) if return_lse else out


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        *,
        causal=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
    ):  # type: ignore[no-untyped-def]
        self.keep(
            qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim_qk, page_size
        )
        self.scale, self.left, self.softcap, self.causal = sm_scale, window_left, logits_soft_cap or 0.0, causal
        self.q_dtype, self.kv_dtype = q_data_type, kv_data_type

    def run(self, q, paged_kv_cache, *, return_lse=False):  # type: ignore[no-untyped-def]
        return self.compute(q, paged_kv_cache, return_lse)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        *,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        sm_scale=None,
    ):  # type: ignore[no-untyped-def]
        group = num_qo_heads // num_kv_heads
        require(self.options.get("use_tensor_cores", False) or group in (1, 2, 3, 4, 8), "group sizes without tensor cores")
        starts = torch.arange(len(last_page_len) + 1, dtype=torch.int32)
        self.keep(starts, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size)
        self.scale, self.left, self.softcap, self.causal = sm_scale, window_left, logits_soft_cap or 0.0, True
        self.q_dtype, self.kv_dtype = q_data_type, kv_data_type

    def run(self, q, paged_kv_cache, *, return_lse=False):  # type: ignore[no-untyped-def]
        return self.compute(q, paged_kv_cache, return_lse)


def module(name: str, *members: Any) -> ModuleType:
    """A module that the import system finds, with these functions, classes and modules."""
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for member in members:
        setattr(made, member.__name__.rpartition(".")[2], member)
    return made


def install(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    for made in modules:
        monkeypatch.setitem(sys.modules, made.__name__, made)
