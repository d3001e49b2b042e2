"""Paged attention by vLLM's Triton kernel (``unified_attention``): prefill and decode in one kernel.

One program per block of query rows and KV head; a decode step of few requests is split along the keys into 16 segments, which a
second kernel combines. The scratch of the segments is allocated once, as vLLM's backend does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec

SEGMENTS, LEAST_PROGRAMS = 16, 128
"""vLLM's: segments per request, and the programs below which a decode step is split."""


class UnifiedAttention:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        from vllm.v1.attention.ops.triton_unified_attention import unified_attention

        self._attention, self._scale = unified_attention, params["scale"]
        window = params.get("window")
        self._window = (-1, -1) if window is None else (window - 1, 0)
        self._softcap, self._sinks = params.get("softcap") or 0.0, weights.get("sinks")
        num_heads, self._most_split = spec.facts["num_heads"], LEAST_PROGRAMS // spec.facts["num_kv_heads"]
        shape = self._most_split, num_heads, SEGMENTS
        padded = 1 << (spec.facts["head_dim"] - 1).bit_length()
        self._partial = torch.empty(*shape, padded, dtype=torch.float32, device=spec.device)
        self._max, self._sum = torch.empty(2, *shape, dtype=torch.float32, device=spec.device)

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
        return reasons or _import_error()

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
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
            softmax_segm_output=self._partial,
            softmax_segm_max=self._max,
            softmax_segm_expsum=self._sum,
            sinks=self._sinks,
        )
        return out


def _import_error() -> list[str]:
    try:
        import vllm.v1.attention.ops.triton_unified_attention  # noqa: F401
    except Exception as error:  # a broken library raises what it likes
        return [f"vLLM's Triton attention cannot be imported: {type(error).__name__}: {error}"]
    return []


@impl("paged_attention_decode", "vllm_triton", requires=("vllm", "triton"), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Decode(UnifiedAttention):
    pass


@impl("paged_attention_prefill", "vllm_triton", requires=("vllm", "triton"), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Prefill(UnifiedAttention):
    pass
