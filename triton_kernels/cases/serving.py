"""The calls that a served model makes: what is compiled ahead of time, and what rooflines are drawn for.

Shapes are those of Llama 3 8B (32 query and 8 key/value heads of 128, hidden 4096, intermediate 14336, vocabulary
128256), of Qwen3 30B-A3B for the experts (128 experts of 768, 8 per token, hidden 2048), of T5 11B for position biases
(64 heads of 64 with keys of their own), and wider ones where a kernel has a second path. Large arrays are not
initialized, so that making a case costs neither time nor memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..attention_meta import AttentionMeta, LayerKV
from ..op import Case
from ..ops import OPS
from . import gemm, moe, quantized_args, quantized_dims
from .collectives import AlikeRanks
from .kv_cache import cache_dims

HIDDEN, INTERMEDIATE, VOCAB = 4096, 14336, 128256
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BIASED_HEADS, BIASED_HEAD_DIM, DISTANCES = 64, 64, 129
LATENT, LATENT_ROPE, LATENT_NOPE, LATENT_HEADS = 512, 64, 128, 128
EXPERTS, EXPERT_HIDDEN, EXPERT_INTERMEDIATE, TOP_K = 128, 2048, 768, 8


@dataclass(frozen=True)
class Batch:
    """New tokens and context length (new tokens included) of each request."""

    q_lens: tuple[int, ...]
    ctx_lens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.q_lens)


@dataclass(frozen=True)
class ServingCase:
    """One call of an op in a step. ``make(dtype)`` gives every argument of the op's reference by name, on the CPU; ``dims``
    and ``batch`` are what its cost function takes."""

    name: str
    batch: Batch
    dims: Mapping[str, float]
    make: Callable[[torch.dtype], dict[str, Any]]


def decode(num_reqs: int, ctx_len: int = 2048, num_queries: int = 1) -> Batch:
    return Batch((num_queries,) * num_reqs, (ctx_len,) * num_reqs)


def prefill(num_tokens: int) -> Batch:
    return Batch((num_tokens,), (num_tokens,))


def serving_cases(op: str) -> tuple[ServingCase, ...]:
    """The calls of an op; unless this module has some, its own cases for benchmarks, which are then filled with numbers."""
    return _CASES[op] if op in _CASES else _benches(OPS[op].cases)


def _linear(name: str, batch: Batch, num_out: int = 6144, num_in: int = HIDDEN) -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        x, weight = torch.empty(batch.num_tokens, num_in, dtype=dtype), torch.empty(num_out, num_in, dtype=dtype)
        return {"x": x, "weight": weight, "bias": None}

    return ServingCase(name, batch, {"in_features": num_in, "out_features": num_out}, make)


def _all_reduce(name: str, batch: Batch, norm: bool = False) -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        args: dict[str, Any] = {"x": torch.empty(batch.num_tokens, HIDDEN), "group": AlikeRanks(), "bias": None}
        if not norm:
            return args | {"out_dtype": dtype}
        residual, weight = torch.empty(batch.num_tokens, HIDDEN, dtype=dtype), torch.empty(HIDDEN, dtype=dtype)
        return args | {"residual": residual, "weight": weight, "eps": 1e-5, "offset": 0.0}

    return ServingCase(name, batch, {"hidden_size": HIDDEN, "ranks": 8, "partial_bytes": 4}, make)


def _embedding(dtype: torch.dtype) -> dict[str, Any]:
    ids = torch.arange(64, dtype=torch.int32)
    return {"token_ids": ids, "weight": torch.empty(VOCAB, HIDDEN, dtype=dtype), "vocab_start": 0}


def _quantized(granularity: str) -> dict[str, Any]:
    return quantized_args(torch.device("cpu"), torch.float8_e4m3fn if granularity else None, granularity or "token", 0.0)


def _quantized_dims(width: int, granularity: str) -> dict[str, float]:
    return quantized_dims(width, granularity) if granularity else {}


def _norm(name: str, shape: tuple[int, ...], op: str, residual: bool = True, quantized_values: str = "") -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        x = torch.empty(*shape[:-1], shape[-1] + 1024, dtype=dtype)[..., : shape[-1]]
        extra = (
            {"offset": 0.0, **_quantized(quantized_values)} if op == "rms_norm" else {"bias": torch.empty(shape[-1], dtype=dtype)}
        )
        weight = torch.empty(shape[-1], dtype=dtype)
        return {"x": x, "residual": torch.empty(shape, dtype=dtype) if residual else None, "weight": weight, "eps": 1e-5} | extra

    elements = math.prod(shape[1:])
    dims = {"hidden_size": elements, "residual": float(residual), **_quantized_dims(elements, quantized_values)}
    return ServingCase(name, decode(shape[0]), dims, make)


def _rotary(style: str) -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        q, k, _ = torch.empty(64, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=dtype).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        positions, table = torch.zeros(64, dtype=torch.int64), torch.empty(8192, HEAD_DIM)
        return {"q": q, "k": k, "positions": positions, "cos_sin": table, "style": style}

    dims = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    return ServingCase(style, decode(64), dims, make)


def _gate(name: str, quantized_values: str = "", **more: Any) -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        return {"x": torch.empty(2048, 2 * INTERMEDIATE, dtype=dtype), **_quantized(quantized_values)} | more

    dims = {"intermediate_size": INTERMEDIATE, **_quantized_dims(INTERMEDIATE, quantized_values)}
    return ServingCase(name, prefill(2048), dims, make)


def _latent_cache(num_pages: int, page_size: int, dtype: torch.dtype) -> LayerKV:
    k = torch.empty(num_pages, page_size, 1, LATENT + LATENT_ROPE, dtype=dtype)
    return LayerKV(k, k[..., :LATENT])


def _cache(num_pages: int, page_size: int, dtype: torch.dtype, head_dim: int = HEAD_DIM, kv_heads: int = KV_HEADS) -> LayerKV:
    k, v = torch.empty(2, num_pages, page_size, kv_heads, head_dim, dtype=dtype)
    return LayerKV(k, v, *(torch.empty(2, num_pages, page_size, kv_heads) if dtype.itemsize == 1 else ()))


def _kv_dims(kv_dtype: torch.dtype | None, head_dim: int = HEAD_DIM, kv_heads: int = KV_HEADS) -> dict[str, float]:
    return {"num_kv_heads": kv_heads, "head_dim": head_dim, **cache_dims(kv_dtype)}


def _kv_cache_write(name: str, kv_dtype: torch.dtype | None = None, static: bool = False) -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        _, k, v = torch.empty(64, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=dtype).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        cache = {"kv": _cache(256, 16, kv_dtype or dtype), "slot_mapping": torch.arange(64)}
        scales = {f"{letter}_scale": torch.ones(1, 1) if static else None for letter in "kv"}
        return {"k": k, "v": v, **cache, **scales}

    return ServingCase(name, decode(64), _kv_dims(kv_dtype), make)


def _copy_blocks(dtype: torch.dtype) -> dict[str, Any]:
    return {"kv": _cache(256, 16, dtype), "src": torch.arange(8), "dst": torch.arange(8, 16)}


def _attention(
    name: str,
    batch: Batch,
    page_size: int,
    head_dim: int = HEAD_DIM,
    kv_dtype: torch.dtype | None = None,
    latent_heads: int = 0,
    biased: bool = False,
    **features: Any,
) -> ServingCase:
    """``latent_heads``: query heads that share one latent key, whose first elements are the value; 0: the usual heads. ``biased``:
    with a table of position biases."""
    heads, kv_heads = (latent_heads or HEADS), KV_HEADS
    if latent_heads:
        head_dim = LATENT + LATENT_ROPE
    if biased:
        heads, kv_heads, head_dim = BIASED_HEADS, BIASED_HEADS, BIASED_HEAD_DIM
        features["position_bias"] = torch.zeros(heads, DISTANCES)

    def make(dtype: torch.dtype) -> dict[str, Any]:
        blocks = [-(-length // page_size) for length in batch.ctx_lens]
        table = torch.arange(1, 1 + len(blocks) * max(blocks), dtype=torch.int32).view(len(blocks), -1)
        meta = AttentionMeta(
            cu_q=torch.tensor([0, *batch.q_lens]).cumsum(0).int(),
            seq_lens=torch.tensor(batch.ctx_lens, dtype=torch.int32),
            block_table=table,
            max_q=max(batch.q_lens),
            max_seq_len=max(batch.ctx_lens),
        )
        args = {"q": torch.empty(batch.num_tokens, heads, head_dim, dtype=dtype), "meta": meta, "scale": head_dim**-0.5}
        pages = 1 + table.numel(), page_size, kv_dtype or dtype
        kv = _latent_cache(*pages) if latent_heads else _cache(*pages, head_dim, kv_heads)
        args |= {"kv": kv, "causal": True, "return_lse": False}
        return args | dict.fromkeys(("window", "softcap", "sinks", "alibi", "alibi_scale", "position_bias")) | features

    dims = {"num_heads": heads, **_kv_dims(kv_dtype, head_dim, kv_heads), "window": features.get("window", 0)}
    if latent_heads:
        dims |= {"num_kv_heads": 1, "value_dim": LATENT, "aliased": 1}
    return ServingCase(name, batch, dims, make)


def _head_linear(name: str, batch: Batch, in_features: int, out_features: int, pad: int = 0) -> ServingCase:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        x = torch.empty(batch.num_tokens, LATENT_HEADS, in_features + pad, dtype=dtype)[..., :in_features]
        return {"x": x, "weight": torch.empty(LATENT_HEADS, out_features, in_features, dtype=dtype)}

    return ServingCase(name, batch, {"num_heads": LATENT_HEADS, "in_features": in_features, "out_features": out_features}, make)


def _moe_route(dtype: torch.dtype) -> dict[str, Any]:
    logits = torch.empty(64, EXPERTS, dtype=dtype)
    rule = {"renormalize": True, "scoring": "softmax", "num_groups": 1, "top_groups": 1, "group_score": "max", "scaling": 1.0}
    return {"logits": logits, "bias": None, "top_k": TOP_K, **rule}


def _moe_route_groups(dtype: torch.dtype) -> dict[str, Any]:
    rule = {"scoring": "sigmoid", "num_groups": 8, "top_groups": 4, "group_score": "top2", "scaling": 2.5}
    return _moe_route(dtype) | {"logits": torch.empty(64, 256), "bias": torch.empty(256)} | rule


def _moe_experts(name: str, batch: Batch, scheme: str = "float", limit: float | None = None) -> ServingCase:
    """With a limit there are biases, too."""
    quantized_as = {
        "float": None,
        "w4a16": (torch.int32, 8, (1, 128)),
        "fp8_channel": (torch.float8_e4m3fn, 1, (1, 0)),
        "fp8_block": (torch.float8_e4m3fn, 1, (128, 128)),
    }[scheme]

    def weight(dtype: torch.dtype, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if quantized_as is None:
            return torch.empty(EXPERTS, rows, columns, dtype=dtype), None
        quantized_values, per_value, (block_rows, block_columns) = quantized_as
        scales = torch.empty(EXPERTS, rows // block_rows, columns // block_columns if block_columns else 1)
        return torch.empty(EXPERTS, rows, columns // per_value, dtype=quantized_values), scales if per_value == 1 else scales.to(
            dtype
        )

    def make(dtype: torch.dtype) -> dict[str, Any]:
        tokens = batch.num_tokens
        ids = torch.arange(tokens * TOP_K, dtype=torch.int32).view(tokens, TOP_K) % EXPERTS
        (w13, w13_scale), (w2, w2_scale) = (weight(dtype, *shape) for shape in shapes)
        x, weights = torch.empty(tokens, EXPERT_HIDDEN, dtype=dtype), torch.full((tokens, TOP_K), 1 / TOP_K)
        args = {"x": x, "weights": weights, "ids": ids, "w13": w13, "w2": w2, "expert_start": 0}
        biases = [torch.empty(EXPERTS, rows, dtype=dtype) if limit else None for rows, _ in shapes]
        args |= {"w13_bias": biases[0], "w2_bias": biases[1], "limit": limit, "alpha": 1.702, "weighs_input": False}
        return args | {"w13_scale": w13_scale, "w2_scale": w2_scale, "w13_zeros": None, "w2_zeros": None}

    shapes = (2 * EXPERT_INTERMEDIATE, EXPERT_HIDDEN), (EXPERT_HIDDEN, EXPERT_INTERMEDIATE)
    dims = {"num_experts": EXPERTS, "top_k": TOP_K, "hidden_size": EXPERT_HIDDEN, "intermediate_size": EXPERT_INTERMEDIATE}
    return ServingCase(name, batch, dims | moe.quantized_dims(scheme, group=128), make)


def _seats(num_rows: int) -> torch.Tensor:
    return torch.arange(num_rows, dtype=torch.int32)


def _apply_penalties(dtype: torch.dtype) -> dict[str, Any]:
    words, ones = VOCAB // 32, torch.ones(64)
    mask = torch.empty(64, words, dtype=torch.int32)
    args = {"logits": torch.empty(64, VOCAB), "row_to_seat": _seats(64), "bitmask": mask, "prompt_mask": mask.clone()}
    args |= {"output_counts": torch.empty(64, VOCAB, dtype=torch.int32)}
    args |= {"repetition": ones, "frequency": ones.clone(), "presence": ones.clone()}
    args |= {"bias_ids": torch.full((64, 16), -1, dtype=torch.int32), "bias_values": torch.zeros(64, 16)}
    return args | {"drafts": torch.full((64, 3), -1, dtype=torch.int32)}


def _sample(dtype: torch.dtype) -> dict[str, Any]:
    args = {"logits": torch.empty(64, VOCAB, dtype=dtype), "row_to_seat": _seats(64), "temperature": torch.ones(64)}
    args |= {"top_k": torch.full((64,), 50, dtype=torch.int32), "top_p": torch.full((64,), 0.9), "min_p": torch.zeros(64)}
    return args | {"seed": torch.arange(64), "position": torch.arange(64), "stream": 0}


def _filter_logits(dtype: torch.dtype) -> dict[str, Any]:
    return {name: value for name, value in _sample(dtype).items() if name not in ("seed", "position", "stream")}


def _gather_logprobs(dtype: torch.dtype) -> dict[str, Any]:
    return {"logits": torch.empty(64, VOCAB, dtype=dtype), "token_ids": torch.arange(64), "num_top": 5}


def _benches(cases: Sequence[Case]) -> tuple[ServingCase, ...]:
    device = torch.device("cpu")
    return tuple(
        ServingCase(c.name, Batch(c.q_lens, c.ctx_lens), c.dims, lambda dtype, make=c.make: make(torch.Generator(), dtype, device))  # type: ignore[misc]
        for c in cases
        if "bench" in c.tags
    )


_LOGITS = {"vocab_size": VOCAB}
_CASES: Mapping[str, tuple[ServingCase, ...]] = {
    "linear": (
        _linear("1 token", decode(1)),
        _linear("32 tokens", decode(32)),
        _linear("64 tokens", decode(64)),
        _linear("256 tokens", decode(256)),
        _linear("2048 tokens", prefill(2048)),
        _linear("odd sizes, 2048 tokens", prefill(2048), 971, 2113),
    ),
    "all_reduce": (_all_reduce("1 token", decode(1)), _all_reduce("64 tokens", decode(64))),
    "all_reduce_add_rms_norm": (_all_reduce("64 tokens", decode(64), norm=True),),
    "embedding": (ServingCase("64 tokens", decode(64), {"hidden_size": HIDDEN}, _embedding),),
    "rms_norm": (
        _norm("hidden state", (64, HIDDEN), "rms_norm"),
        _norm("query heads", (64, HEADS, HEAD_DIM), "rms_norm", residual=False),
        _norm("hidden state, wide", (64, 4 * HIDDEN), "rms_norm"),
        _norm("hidden state, quantized values by token", (64, HIDDEN), "rms_norm", quantized_values="token"),
    ),
    "layer_norm": (_norm("hidden state", (64, HIDDEN), "layer_norm"), _norm("wide", (64, 4 * HIDDEN), "layer_norm")),
    "rotary": (_rotary("neox"), _rotary("gptj")),
    "silu_and_mul": (_gate("2048 tokens"), _gate("2048 tokens, quantized values by token", "token")),
    "gelu_and_mul": (_gate("tanh", approximate="tanh"), _gate("exact", approximate="none")),
    "kv_cache_write": (
        _kv_cache_write("64 tokens"),
        _kv_cache_write("64 tokens, e4m3", torch.float8_e4m3fn),
        _kv_cache_write("64 tokens, e4m3, static", torch.float8_e4m3fn, static=True),
    ),
    "copy_blocks": (ServingCase("8 pages", decode(1), _kv_dims(None) | {"num_blocks": 8, "page_size": 16}, _copy_blocks),),
    "head_linear": (
        _head_linear("64 tokens, absorb", decode(64), LATENT_NOPE, LATENT, pad=LATENT_ROPE),
        _head_linear("64 tokens, values", decode(64), LATENT, LATENT_NOPE),
        _head_linear("2048 tokens, absorb", prefill(2048), LATENT_NOPE, LATENT, pad=LATENT_ROPE),
    ),
    "paged_attention_prefill": (
        _attention("2048 tokens, page 16", prefill(2048), 16),
        _attention("2048 tokens, page 64", prefill(2048), 64),
        _attention("head 256, window, softcap", prefill(2048), 64, 256, window=1024, softcap=50.0),
        _attention("2048 tokens, int8", prefill(2048), 64, kv_dtype=torch.int8),
        _attention("latent, 128 heads", prefill(2048), 64, latent_heads=128),
        _attention("latent, 16 heads", prefill(2048), 64, latent_heads=16),
        _attention("position bias", prefill(2048), 64, biased=True),
    ),
    "paged_attention_decode": (
        _attention("64 requests, page 16", decode(64), 16),
        _attention("64 requests, page 64", decode(64), 64),
        _attention("8 requests, 4 queries", decode(8, num_queries=4), 16),
        _attention("8 requests, 8 queries", decode(8, num_queries=8), 64),
        _attention("64 requests, int8", decode(64), 16, kv_dtype=torch.int8),
        _attention("64 requests, e4m3", decode(64), 16, kv_dtype=torch.float8_e4m3fn),
        _attention("64 requests, e4m3, page 64", decode(64), 64, kv_dtype=torch.float8_e4m3fn),
        _attention("64 requests, head 256", decode(64), 64, 256),
        _attention("latent, 128 heads", decode(64), 64, latent_heads=128),
        _attention("latent, 16 heads", decode(64), 64, latent_heads=16),
        _attention("position bias", decode(64), 64, biased=True),
    ),
    "moe_route": (
        ServingCase("64 tokens", decode(64), {"num_experts": EXPERTS, "top_k": TOP_K}, _moe_route),
        ServingCase("64 tokens, groups", decode(64), {"num_experts": 256, "top_k": TOP_K}, _moe_route_groups),
    ),
    "moe_experts": (
        _moe_experts("64 tokens", decode(64)),
        _moe_experts("1 token", decode(1)),
        _moe_experts("256 tokens", decode(256)),
        _moe_experts("512 tokens", prefill(512)),
        _moe_experts("2048 tokens", prefill(2048)),
        _moe_experts("64 tokens, biases and limit", decode(64), limit=7.0),
        _moe_experts("2048 tokens, biases and limit", prefill(2048), limit=7.0),
        _moe_experts("w4a16", decode(64), "w4a16"),
        _moe_experts("2048 tokens, w4a16", prefill(2048), "w4a16"),
        _moe_experts("2048 tokens, fp8 channels", prefill(2048), "fp8_channel"),
        _moe_experts("2048 tokens, fp8 blocks", prefill(2048), "fp8_block"),
        _moe_experts("fp8 channels", decode(64), "fp8_channel"),
        _moe_experts("fp8 blocks", decode(64), "fp8_block"),
    ),
    "apply_penalties": (ServingCase("64 rows", decode(64), _LOGITS, _apply_penalties),),
    "sample": (ServingCase("64 rows", decode(64), _LOGITS, _sample),),
    "filter_logits": (ServingCase("64 rows", decode(64), _LOGITS, _filter_logits),),
    "gather_logprobs": (ServingCase("64 rows", decode(64), _LOGITS, _gather_logprobs),),
    **{op: _benches(cases) for op, cases in gemm.SERVING_CASES.items()},
}
