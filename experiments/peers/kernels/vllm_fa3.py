"""Paged attention by FlashAttention-3 as vLLM builds and calls it (``vllm.vllm_flash_attn``), for Hopper.

FA3 (Shah et al., arXiv 2407.08608) runs a persistent grid of warp-specialized blocks over (rows, heads, splits of the keys). Its
schedule is computed once per step in ``begin_step``, as vLLM does, and the calls of all layers read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec

HALVES = (torch.float16, torch.bfloat16)
GRAPH_SPLITS = 32
"""Upper bound of the splits of a decode step, of which the schedule on the device takes as many as pay: vLLM's for graphs."""


class FlashAttention3:
    """``num_splits``: an upper bound, or 0 for FA3's own choice from the bounds that the host knows."""

    num_splits: int

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

        self._attention, self._schedule = flash_attn_varlen_func, get_scheduler_metadata
        self._scale, self._causal = params["scale"], params.get("causal", True)
        window = params.get("window")
        self._window = (-1, -1) if window is None else (window - 1, 0 if self._causal else -1)
        self._softcap = params.get("softcap") or 0.0
        self._heads = spec.facts["num_heads"], spec.facts["num_kv_heads"], spec.facts["head_dim"]
        self._page_size, self._dtype = spec.facts["page_size"], spec.dtype
        self._key = f"vllm_fa3:{self._heads}:{self._window}:{self._softcap > 0}"

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.arch != "sm_90":
            reasons.append(f"is built for sm_90, not for {spec.arch}")
        if spec.dtype not in HALVES or spec.fact("kv_dtype", spec.dtype) != spec.dtype:
            reasons.append("is adapted for float16 and bfloat16 with a cache of the same dtype")
        if spec.fact("head_dim", 128) % 8 or spec.fact("head_dim", 128) > 256:
            reasons.append(f"has head sizes up to 256 in steps of 8, not {spec.fact('head_dim')}")
        if spec.fact("value_dim", 0) != spec.fact("head_dim", 0):
            reasons.append("is adapted for values of the keys' size")
        if spec.fact("page_size", 16) % 16:
            reasons.append(f"is served with pages of a multiple of 16 tokens, not {spec.fact('page_size')}")
        reasons += [f"is adapted without {name}" for name in ("sinks", "alibi", "return_lse") if spec.fact(name)]
        return reasons or _import_error()

    def begin_step(self, meta: AttentionMeta) -> None:
        """Writes the step's schedule into ``meta.workspace``, into the same memory while the number of requests stays."""
        num_heads, num_kv_heads, head_dim = self._heads
        found = self._schedule(
            batch_size=meta.num_reqs,
            max_seqlen_q=meta.max_q,
            max_seqlen_k=meta.max_seq_len,
            num_heads_q=num_heads,
            num_heads_kv=num_kv_heads,
            headdim=head_dim,
            cache_seqlens=meta.seq_lens,
            qkv_dtype=self._dtype,
            cu_seqlens_q=meta.cu_q,
            page_size=self._page_size,
            causal=self._causal,
            window_size=self._window,
            has_softcap=self._softcap > 0,
            num_splits=self.num_splits,
        )
        kept = meta.workspace.get(self._key)
        if kept is None or kept.shape != found.shape:
            meta.workspace[self._key] = found
        else:
            kept.copy_(found)

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor:
        out: torch.Tensor = self._attention(
            q,
            kv.k,
            kv.v,
            max_seqlen_q=meta.max_q,
            cu_seqlens_q=meta.cu_q,
            max_seqlen_k=meta.max_seq_len,
            seqused_k=meta.seq_lens,
            softmax_scale=self._scale,
            causal=self._causal,
            window_size=list(self._window),
            softcap=self._softcap,
            block_table=meta.block_table,
            scheduler_metadata=meta.workspace[self._key],
            num_splits=self.num_splits,
            fa_version=3,
        )
        return out


def _import_error() -> list[str]:
    try:
        import vllm.vllm_flash_attn.flash_attn_interface as interface
    except Exception as error:  # a broken library raises what it likes
        return [f"vllm.vllm_flash_attn cannot be imported: {type(error).__name__}: {error}"]
    return [] if interface.FA3_AVAILABLE else [f"vLLM's FA3 cannot be loaded: {interface.FA3_UNAVAILABLE_REASON}"]


@impl("paged_attention_decode", "vllm_fa3", requires=("vllm",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Decode(FlashAttention3):
    num_splits = GRAPH_SPLITS


@impl("paged_attention_prefill", "vllm_fa3", requires=("vllm",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Prefill(FlashAttention3):
    num_splits = 0
