"""Paged attention for a CPU in C, compiled for the machine at the first use (a fraction of a second).

It reads the pages where they are, while the ``torch`` impl gathers them first; see ``native_attention.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...attention_meta import AttentionMeta, LayerKV
from ...spec import Spec
from .native_call import NativeKernel
from .native_code import library_reasons

_WORK = 1 << 30
"""Always worth all threads."""


class NativeAttention:
    """Both attention ops."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        given = {**params, **weights}
        self.sinks = None if given.get("sinks") is None else given["sinks"].float().contiguous()
        self.alibi = None if given.get("alibi") is None else given["alibi"].float().contiguous()
        table = given.get("position_bias")
        self.position_bias = None if table is None else table.float().contiguous()
        self.num_distances = 0 if table is None else table.shape[1]
        self.alibi_scale = given.get("alibi_scale") or 0.0
        self.return_lse = given.get("return_lse", False)
        self.window, self.causal = given.get("window") or 2**62, given.get("causal", True)
        self.scale, self.softcap = given["scale"], given.get("softcap") or 0.0
        self.kernels: dict[tuple[int, int], NativeKernel] = {}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        if spec.fact("kv_dtype", spec.dtype) != spec.dtype:
            return [f"reads a cache of {spec.dtype}, not of {spec.fact('kv_dtype')}"]
        head_dim = spec.fact("head_dim", 64)
        return library_reasons("native_attention.c", spec.dtype, *_defines(head_dim, spec.fact("value_dim", head_dim)))

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        k, v, table = kv.k, kv.v, meta.block_table
        out = torch.empty(*q.shape[:2], v.shape[-1], dtype=q.dtype)
        lse = torch.empty(q.shape[:2], dtype=torch.float32) if self.return_lse else None
        dims = k.shape[3], v.shape[3]
        if dims not in self.kernels:
            fields = "pppp ppp ppp p iiiiiiiii iiiiiiiii fff"
            self.kernels[dims] = NativeKernel("native_attention.c", q.dtype, "attention", fields, *_defines(*dims))
        self.kernels[dims](
            _WORK,
            *(q, k, v, out, meta.cu_q, meta.seq_lens, table, self.sinks, self.alibi, self.position_bias, lse),
            *(q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3], table.stride(0)),
            *(q.shape[0], meta.num_reqs, q.shape[1], k.shape[2], kv.page_size, -(-meta.max_q // _queries_per_block(dims[0]))),
            *(self.causal, self.window, self.num_distances, self.scale, self.softcap, self.alibi_scale),
        )
        return out if lse is None else (out, lse)


def _defines(head_dim: int, value_dim: int) -> tuple[str, ...]:
    return f"-DDIM={head_dim}", f"-DVALUE_DIM={value_dim}", f"-DQUERIES={_queries_per_block(head_dim)}"


def _queries_per_block(head_dim: int) -> int:
    """Latent keys are wide and shared by all heads, whose rows lie on a thread's stack."""
    return 8 if head_dim <= 256 else 1
