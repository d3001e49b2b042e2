"""Paged attention by vLLM's Triton kernel (``unified_attention``): prefill and decode in one kernel.

One program per block of query rows and KV head; a decode step of few requests is split along the keys into 16 segments, which a
second kernel combines. The scratch of the segments is allocated once, as vLLM's backend does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from experiments.peers.kernels._vllm_python import ATTENTION, import_error, load
from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec

SEGMENTS, LEAST_PROGRAMS = 16, 128
"""vLLM's: segments per request, and the programs below which a decode step is split."""


class UnifiedAttention:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self._attention, self._scale = load(ATTENTION).unified_attention, params["scale"]
        window = params.get("window")
        self._window = (-1, -1) if window is None else (window - 1, 0)
        self._softcap, self._sinks = params.get("softcap") or 0.0, weights.get("sinks")
        self._num_heads, self._most_split = spec.facts["num_heads"], LEAST_PROGRAMS // spec.facts["num_kv_heads"]
        self._padded_dim = 1 << (spec.facts["head_dim"] - 1).bit_length()
        self._scratch: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.arch != "sm_90":
            reasons.append(f"was adapted for sm_90, not for {spec.arch}")
        if spec.fact("kv_dtype", spec.dtype) != spec.dtype:
            reasons.append("is adapted for a cache of the activations' dtype")
        if spec.fact("value_dim", 0) != spec.fact("head_dim", 0):
            reasons.append("needs values of the keys' size")
        if not spec.fact("causal", True):
            reasons.append("is adapted for causal attention")
        reasons += [f"is adapted without {name}" for name in ("alibi", "return_lse") if spec.fact(name)]
        return reasons or import_error(ATTENTION)

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if not self._scratch:
            shape = self._most_split, self._num_heads, SEGMENTS
            sizes = (*shape, self._padded_dim), shape, shape
            self._scratch = tuple(torch.empty(size, dtype=torch.float32, device=q.device) for size in sizes)
        partial, maximum, total = self._scratch
        self._attention(
            q=q,
            k=kv.k,
            v=kv.v,
            out=out,
            cu_seqlens_q=meta.cu_q,
            max_seqlen_q=meta.max_q,
            seqused_k=meta.seq_lens,
            max_seqlen_k=meta.max_seq_len,
            softmax_scale=self._scale,
            causal=True,
            window_size=self._window,
            block_table=meta.block_table,
            softcap=self._softcap,
            q_descale=None,
            k_descale=None,
            v_descale=None,
            seq_threshold_3D=self._most_split,
            num_par_softmax_segments=SEGMENTS,
            softmax_segm_output=partial,
            softmax_segm_max=maximum,
            softmax_segm_expsum=total,
            sinks=self._sinks,
            kv_quant_mode=0,  # KVQuantMode.NONE
        )
        return out


@impl("paged_attention_decode", "vllm_triton", requires=("triton",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Decode(UnifiedAttention):
    pass


@impl("paged_attention_prefill", "vllm_triton", requires=("triton",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Prefill(UnifiedAttention):
    pass
