"""What the adapters of FlashAttention 2 and 3 share: the limits of the libraries, their conventions, their calls.

Both count a window as (left, right) keys besides the query's own, with -1 for no limit, align queries to the end of the keys,
give the LSE of ragged queries as [H, T] in natural log, and 0 to a row without keys, whose LSE version 2 calls +inf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...attention_meta import AttentionMeta, LayerKV
from ...spec import Spec

_HALVES = (torch.float16, torch.bfloat16)
_KEY = "flash_attn"


def unsupported_by_both(spec: Spec) -> list[str]:
    """Reasons that hold for both versions."""
    reasons = []
    if spec.arch.startswith("gfx"):
        reasons.append(f"is adapted to the library's CUDA kernels, not to {spec.arch}")
    if spec.dtype not in _HALVES:
        reasons.append(f"takes float16 and bfloat16, not {spec.dtype}")
    kv_dtype = spec.fact("kv_dtype", spec.dtype)
    if kv_dtype != spec.dtype:
        reasons.append(f"reads a cache of the activations' dtype {spec.dtype}, not of {kv_dtype} with a scale per token")
    for name in ("head_dim", "value_dim"):
        size = spec.fact(name, 128)
        if size % 8 or size > 256:
            reasons.append(f"needs {name} to be a multiple of 8 up to 256, not {size}")
    if spec.fact("sinks"):
        reasons.append("has no attention sinks")
    if spec.fact("position_bias"):
        reasons.append("takes no table of position biases")
    return reasons


class _FlashAttention:
    """The bound arguments as the library's keywords."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.return_lse: bool = params.get("return_lse", False)
        causal, window = params.get("causal", True), params.get("window")
        limits = (-1, -1) if window is None else (window - 1, 0 if causal else window - 1)
        self.keywords: dict[str, Any] = {
            "softmax_scale": params["scale"],
            "causal": causal,
            "window_size": limits,
            "softcap": params.get("softcap") or 0.0,
        }

    @staticmethod
    def natural(lse: torch.Tensor) -> torch.Tensor:
        """The op's LSE [T, H] of the library's [H, T]."""
        rows = lse.T
        return rows.masked_fill(rows == torch.inf, -torch.inf)


class FlashAttention2(_FlashAttention):
    """``flash_attn_varlen_func`` over pages, and ``flash_attn_with_kvcache``, the one that splits keys, for steps with one
    query per request if ``split_decodes``."""

    split_decodes: bool

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import flash_attn

        super().__init__(spec, weights, params)
        alibi = weights.get("alibi")
        self.keywords["alibi_slopes"] = None if alibi is None else alibi.float()
        self.ragged, self.uniform = flash_attn.flash_attn_varlen_func, flash_attn.flash_attn_with_kvcache

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = unsupported_by_both(spec)
        if spec.arch.startswith("sm_") and int(spec.arch[3:]) < 80:
            reasons.append(f"needs sm_80 or later, not {spec.arch}")
        if spec.fact("page_size", 256) % 256:
            reasons.append(f"needs pages of 256 tokens or a multiple, not {spec.fact('page_size')}")
        if spec.fact("value_dim", 128) != spec.fact("head_dim", 128):
            reasons.append(f"needs value_dim to be head_dim, not {spec.fact('value_dim')} beside {spec.fact('head_dim')}")
        if spec.fact("alibi") and not spec.fact("causal", True):
            reasons.append("its ALiBi takes the distance's absolute value, which is not the op's where keys lie ahead")
        if spec.fact("rounded_alibi"):
            reasons.append("its ALiBi is not rounded to bfloat16")
        if spec.fact("alibi") and spec.fact("return_lse"):
            reasons.append("its causal ALiBi leaves out the query's position, which shifts the LSE")
        return reasons

    def begin_step(self, meta: AttentionMeta) -> None:
        """The borders of the requests' keys, int32 [R+1]."""
        ends = torch.cumsum(meta.seq_lens, 0, dtype=torch.int32)
        meta.workspace[_KEY] = torch.nn.functional.pad(ends, (1, 0))

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.split_decodes and meta.max_q == 1 and q.shape[0] == meta.num_reqs:
            result = self.uniform(
                q[:, None],
                kv.k,
                kv.v,
                cache_seqlens=meta.seq_lens,
                block_table=meta.block_table,
                return_softmax_lse=self.return_lse,
                **self.keywords,
            )
            return (result[0][:, 0], self.natural(result[1][:, :, 0].T)) if self.return_lse else result[:, 0]
        if _KEY not in meta.workspace:
            self.begin_step(meta)
        result = self.ragged(
            q,
            kv.k,
            kv.v,
            cu_seqlens_q=meta.cu_q,
            cu_seqlens_k=meta.workspace[_KEY],
            max_seqlen_q=meta.max_q,
            max_seqlen_k=meta.max_seq_len,
            block_table=meta.block_table,
            return_attn_probs=self.return_lse,
            **self.keywords,
        )
        return (result[0], self.natural(result[1])) if self.return_lse else result


class FlashAttention3(_FlashAttention):
    """``flash_attn_with_kvcache`` with ragged queries; ``num_splits`` of 0 leaves the number of splits to the library."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], *, num_splits: int) -> None:
        import flash_attn_interface

        super().__init__(spec, weights, params)
        self.keywords["num_splits"] = num_splits
        self.attend = flash_attn_interface.flash_attn_with_kvcache

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = unsupported_by_both(spec)
        if spec.device == "cuda" and spec.arch != "sm_90":
            reasons.append(f"is made for sm_90, not {spec.arch}")
        key, value = spec.fact("head_dim", 128), spec.fact("value_dim", 128)
        if value != key and not (key <= 64 or (128 < key <= 192 and 96 < value <= 128)):
            reasons.append(f"has no kernel for value_dim {value} beside head_dim {key}")
        if spec.fact("alibi"):
            reasons.append("has no ALiBi")
        return reasons

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        result = self.attend(
            q,
            kv.k,
            kv.v,
            cache_seqlens=meta.seq_lens,
            page_table=meta.block_table,
            cu_seqlens_q=meta.cu_q,
            max_seqlen_q=meta.max_q,
            return_softmax_lse=self.return_lse,
            **self.keywords,
        )
        return (result[0], self.natural(result[1])) if self.return_lse else result
