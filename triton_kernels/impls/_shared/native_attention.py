"""Paged attention for a CPU in C, compiled for the machine at the first use (a fraction of a second).

It reads the pages where they are, while the ``torch`` impl gathers them first; see ``native_attention.c``. Threads are those of
torch: both use the OpenMP runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from ...attention_meta import AttentionMeta, LayerKV
from ...spec import Spec
from .native_code import library, library_reasons

_POINTERS = ("q", "k", "v", "out", "cu_q", "seq_lens", "block_table", "sinks", "alibi", "lse")
_INTEGERS = (
    *("q_row", "q_head", "k_page", "k_slot", "k_head", "v_page", "v_slot", "v_head", "table_row"),
    *("num_reqs", "num_heads", "num_kv_heads", "page_size", "num_blocks", "causal", "window"),
)
_QUERIES_PER_BLOCK = 8


class _Call(ctypes.Structure):
    """``struct call`` of the C source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _INTEGERS),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    ]


def _function(dtype: torch.dtype, head_dim: int, value_dim: int) -> Any:
    function = library("native_attention.c", dtype, f"-DDIM={head_dim}", f"-DVALUE_DIM={value_dim}").attention
    function.argtypes, function.restype = [ctypes.POINTER(_Call)], None
    return function


class NativeAttention:
    """Both attention ops."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        given = {**params, **weights}
        self.sinks = None if given.get("sinks") is None else given["sinks"].float().contiguous()
        self.alibi = None if given.get("alibi") is None else given["alibi"].float().contiguous()
        self.return_lse = given.get("return_lse", False)
        self.static = {
            "scale": given["scale"],
            "softcap": given.get("softcap") or 0.0,
            "window": given.get("window") or 2**62,
            "causal": given.get("causal", True),
            "sinks": None if self.sinks is None else self.sinks.data_ptr(),
            "alibi": None if self.alibi is None else self.alibi.data_ptr(),
        }

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        if spec.fact("kv_dtype", spec.dtype) != spec.dtype:
            return [f"reads a cache of {spec.dtype}, not of {spec.fact('kv_dtype')}"]
        head_dim = spec.fact("head_dim", 64)
        return library_reasons(
            "native_attention.c", spec.dtype, f"-DDIM={head_dim}", f"-DVALUE_DIM={spec.fact('value_dim', head_dim)}"
        )

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        k, v, table = kv.k, kv.v, meta.block_table
        # Rows after the last request's are nobody's work, and 0 by contract.
        out = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1])
        lse = out.new_full(q.shape[:2], -torch.inf, dtype=torch.float32) if self.return_lse else None
        call = _Call(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=out.data_ptr(),
            lse=None if lse is None else lse.data_ptr(),
            cu_q=meta.cu_q.data_ptr(),
            seq_lens=meta.seq_lens.data_ptr(),
            block_table=table.data_ptr(),
            q_row=q.stride(0),
            q_head=q.stride(1),
            k_page=k.stride(0),
            k_slot=k.stride(1),
            k_head=k.stride(2),
            v_page=v.stride(0),
            v_slot=v.stride(1),
            v_head=v.stride(2),
            table_row=table.stride(0),
            num_reqs=meta.num_reqs,
            num_heads=q.shape[1],
            num_kv_heads=k.shape[2],
            page_size=kv.page_size,
            num_blocks=-(-meta.max_q // _QUERIES_PER_BLOCK),
            **self.static,
        )
        _function(q.dtype, k.shape[3], v.shape[3])(ctypes.byref(call))
        return out if lse is None else (out, lse)
