"""Cases made from the calls of a served workload: a case file, as a run with ``capture=[OP]`` writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..op import Case, Op
from . import BENCH
from .activation import _case as gate_case
from .attention import _case as attention_case
from .embedding import _case as embedding_case
from .fused import _case as fused_case
from .gemm import _f8, _i8, _q8, _w4, _w8
from .kv_cache import _write_case
from .linear import _case as linear_case
from .moe import _experts_case, _route_case
from .norm import _case as norm_case
from .rotary import _case as rotary_case
from .sampling import _case as row_case
from .sampling import _filter, _logprobs, _penalties, _sample
from .slot_mapping import _case as slot_case

FORMAT = "kernelswap cases 1"
MAX_CASES, MAX_SIZE, MAX_ELEMENTS = 100_000, 1 << 24, 1 << 36
"""Most cases of a file, the largest size or length, and the most elements that a case's tensors may have: above, a file is taken
for broken."""


@dataclass(frozen=True)
class CaseFile:
    """dtype: of the activations of the calls; cases: of one op, each with its ``count``."""

    dtype: torch.dtype
    cases: tuple[Case, ...]


def read_cases(path: Path, op: Op) -> CaseFile:
    """The cases of ``op`` in a file. Raises ValueError for a file without such, or with one that no call can have had."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--cases {path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("ops"), dict):
        raise ValueError(f"--cases {path}: is no case file; expected the cases.json of a run with capture=[{op.name}]")
    if op.name not in found["ops"]:
        raise ValueError(f"--cases {path}: holds calls of {', '.join(found['ops']) or 'nothing'}, none of {op.name}")
    if op.name not in _BUILDERS:
        raise ValueError(f"--cases {path}: calls of {op.name} cannot be replayed; those of {', '.join(_BUILDERS)} can")
    dtype = getattr(torch, str(found.get("dtype")), None)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"--cases {path}: dtype is {found.get('dtype')!r}, expected float32, float16 or bfloat16")
    entries = found["ops"][op.name].get("cases") if isinstance(found["ops"][op.name], dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_CASES:
        raise ValueError(f"--cases {path}: {op.name} has no list of 1 to {MAX_CASES} cases")
    return CaseFile(dtype, tuple(_case(f"--cases {path}: case {i} of {op.name}", op, entry, i) for i, entry in enumerate(entries)))


def _case(where: str, op: Op, entry: Any, number: int) -> Case:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {type(entry).__name__}, expected an object with dims, q_lens, ctx_lens and count")
    dims, options = (_mapping(where, entry, key) for key in ("dims", "options"))
    q_lens, ctx_lens = (_lens(where, entry, key) for key in ("q_lens", "ctx_lens"))
    count = entry.get("count", 0)
    if not _is_whole(count) or not 0 < count <= 1 << 53:
        raise ValueError(f"{where}: count is {count!r}, expected a positive whole number")
    for name, value in dims.items():
        if (not _is_whole(value) and not (isinstance(value, float) and value.is_integer())) or not 0 <= value <= MAX_SIZE:
            raise ValueError(f"{where}: dims.{name} is {value!r}, expected a whole number from 0 to {MAX_SIZE}")
        dims[name] = int(value)
    if ctx_lens and len(ctx_lens) != len(q_lens):
        raise ValueError(f"{where}: {len(q_lens)} q_lens, but {len(ctx_lens)} ctx_lens; expected one of each per request")
    if options.get("causal", True) and any(ctx and q > ctx for q, ctx in zip(q_lens, ctx_lens)):
        raise ValueError(f"{where}: a request has more new tokens (q_lens) than tokens in all (ctx_lens)")
    for name, value in options.items():
        if _is_whole(value) and not 0 <= value <= MAX_SIZE:
            raise ValueError(f"{where}: options.{name} is {value!r}, expected a whole number from 0 to {MAX_SIZE}")
    try:
        made = _BUILDERS[op.name](_name(number, q_lens, ctx_lens), q_lens, ctx_lens, dims, options)
        op.cost({"act_bytes": 2, "weight_bytes": 2, "kv_bytes": 2, **made.dims}, q_lens, ctx_lens)
        size = _elements(q_lens, ctx_lens, dims, options)
    except KeyError as error:
        raise ValueError(f"{where}: lacks {error.args[0]!r} among its dims or options") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: cannot have been a call: {error}") from error
    if size > MAX_ELEMENTS:
        raise ValueError(f"{where}: its tensors would have {size:.3g} elements, more than {MAX_ELEMENTS:.3g}")
    return replace(made, count=count)


def _mapping(where: str, entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {key} is {value!r}, expected an object")
    return value


def _lens(where: str, entry: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = entry.get(key)
    if not isinstance(value, list) or not all(_is_whole(length) and 0 <= length <= MAX_SIZE for length in value):
        raise ValueError(f"{where}: {key} is {str(value)[:60]}, expected a list of whole numbers from 0 to {MAX_SIZE}")
    return tuple(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _elements(q_lens: tuple[int, ...], ctx_lens: tuple[int, ...], dims: Mapping[str, int], options: Mapping[str, Any]) -> float:
    """About how many elements the tensors of a call have: those per token, those in the cache, and the weights."""
    heads = dims.get("num_heads", 0) + 2 * dims.get("num_kv_heads", 0)
    widths = [dims.get(name, 0) for name in ("in_features", "out_features", "hidden_size", "intermediate_size", "vocab_size")]
    tokens = max(sum(q_lens), 1) * max(*widths, heads * dims.get("head_dim", 0), dims.get("num_experts", 0), 1)
    cache = 2 * (sum(ctx_lens) + options.get("page_size", 0) * len(q_lens)) * dims.get("num_kv_heads", 0) * dims.get("head_dim", 0)
    weights = dims.get("in_features", 0) * dims.get("out_features", 0)
    weights += 3 * dims.get("num_experts", 0) * dims.get("hidden_size", 0) * dims.get("intermediate_size", 0)
    return float(tokens + cache + weights + options.get("vocab_size", 0) * dims.get("hidden_size", 0))


def _name(number: int, q_lens: tuple[int, ...], ctx_lens: tuple[int, ...]) -> str:
    """``7_16of24000``: the seventh, 16 requests (or tokens) over 24000 tokens in the cache."""
    size = len(q_lens) if ctx_lens else sum(q_lens)
    return f"captured_{number}_{size}" + (f"of{sum(ctx_lens)}" if ctx_lens else "")


def _kind(options: Mapping[str, Any], key: str) -> torch.dtype | None:
    name = options.get(key)
    if name is not None and not isinstance(dtype := getattr(torch, str(name), None), torch.dtype):
        raise ValueError(f"{key}={name!r} is no dtype")
    return None if name is None else dtype


def _quantized(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a case of an op takes that quantizes its output."""
    kind = _kind(options, "quantized_values")
    if kind is None:
        return {}
    scale = {"static_scale": 0.03} if options["static_scale"] else {}
    return {"quantized_values": kind, "granularity": options["granularity"], **scale}


Builder = Callable[[str, tuple[int, ...], tuple[int, ...], Mapping[str, Any], Mapping[str, Any]], Case]


def _linear(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return linear_case(name, BENCH, sum(q), d["in_features"], d["out_features"], bias=bool(o.get("bias")))


def _gemm(maker, name, q, d, **more):  # type: ignore[no-untyped-def]
    return maker(name, BENCH, sum(q), d["in_features"], d["out_features"], **more)


def _w4a16(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return _gemm(_w4, name, q, d, group=d["group_size"], **{key: bool(o.get(key)) for key in ("zeros", "act_order", "bias")})


def _w8a16(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    flags = {key: bool(o.get(key)) for key in ("zeros", "act_order", "bias")}
    return _gemm(_w8, name, q, d, group=d["group_size"], kind=_kind(o, "kind") or torch.int8, **flags)


def _int8(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return _gemm(_i8, name, q, d, **{key: bool(o.get(key)) for key in ("static", "zero", "bias")})


def _fp8(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    static = bool(o.get("static")) and o["recipe"] == "channel"
    return _gemm(_f8, name, q, d, recipe=o["recipe"], kind=_kind(o, "kind"), static=static, bias=bool(o.get("bias")))


def _quantize(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    static, zero = 0.03 * bool(o["static"]), -37 * bool(o["zero"])
    more = {"out_dtype": _kind(o, "out_dtype"), "granularity": o["granularity"]}
    return _q8(name, BENCH, sum(q), d["hidden_size"], static=static, zero=zero, **more)


def _embedding(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return embedding_case(name, BENCH, sum(q), o["vocab_size"], d["hidden_size"])


def _rms_norm(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return norm_case(name, BENCH, sum(q), d["hidden_size"], residual=bool(d["residual"]), offset=0.0, **_quantized(o))


def _layer_norm(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return norm_case(name, BENCH, sum(q), d["hidden_size"], residual=bool(d["residual"]), bias=bool(o["bias"]))


def _gate(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    approximate = {"approximate": o["approximate"]} if "approximate" in o else {}
    return gate_case(name, BENCH, sum(q), d["intermediate_size"], **approximate, **_quantized(o))


def _heads(d: Mapping[str, Any]) -> tuple[int, int, int]:
    return d["num_heads"], d["num_kv_heads"], d["head_dim"]


def _rotary(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return rotary_case(name, BENCH, sum(q), *_heads(d), o["rot_dim"], style=o["style"])


def _fused(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    more = {"norms": o["norms"], "style": o["style"], "page_size": o["page_size"], "kv_dtype": _kind(o, "kv_dtype")}
    return replace(fused_case(name, BENCH, sum(q), *_heads(d), o["rot_dim"], **more), q_lens=q, ctx_lens=ctx)


def _kv_cache_write(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    static = (0.01, 0.03) if o.get("static") else None
    more = {"page_size": o["page_size"], "kv_dtype": _kind(o, "kv_dtype"), "static": static, "aliased": bool(d.get("aliased"))}
    more["value_dim"] = d.get("value_dim")
    return _write_case(name, BENCH, sum(q), d["num_kv_heads"], d["head_dim"], **more)


def _slot_mapping(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return slot_case(name, BENCH, q, ctx, page_size=o["page_size"])


def _attention(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    if len(ctx) != len(q) or not q:
        raise ValueError("attention needs the length of every request in ctx_lens")
    more = {"page_size": o["page_size"], "window": d["window"] or None, "kv_dtype": _kind(o, "kv_dtype")}
    more |= {"value_dim": d.get("value_dim"), "layout": "aliased" if d.get("aliased") else "separate"}
    more |= {key: o.get(key) for key in ("softcap",)} | {key: bool(o.get(key)) for key in ("sinks", "alibi")}
    more["num_distances"] = o.get("num_distances", 0)
    return attention_case(name, BENCH, q, ctx, _heads(d), causal=bool(o.get("causal", True)), **more)


def _moe_route(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    more = {"renormalize": bool(o["renormalize"]), "scoring": o["scoring"], "bias": bool(o["bias"])}
    more |= {name: o[name] for name in ("num_groups", "top_groups", "group_score") if name in o}
    return _route_case(name, BENCH, sum(q), d["num_experts"], d["top_k"], **more)


def _moe_experts(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    sizes = (d["num_experts"], d["top_k"], d["hidden_size"], d["intermediate_size"])
    quantized = {"group": o["group"], "zeros": bool(o["zeros"])} if o["scheme"] == "w4a16" else {}
    more = quantized | {key: o[key] for key in ("biases", "limit", "weighs_input") if key in o}
    return _experts_case(name, BENCH, sum(q), *sizes, scheme=o["scheme"], **more)


def _sampling(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return row_case(name, _sample, "bench", len(q), d["vocab_size"], filters=((1.0, 0, 1.0, 0.0),))


def _apply_penalties(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    more = {"bitmask": bool(o["bitmask"]), "num_bias": o["num_bias"], "num_drafts": o.get("num_drafts", 0)}
    return row_case(name, _penalties, "bench", len(q), d["vocab_size"], **more)


def _filter_logits(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return row_case(name, _filter, "bench", len(q), d["vocab_size"], filters=((1.0, 50, 0.9, 0.0),))


def _gather_logprobs(name, q, ctx, d, o):  # type: ignore[no-untyped-def]
    return row_case(name, _logprobs, "bench", len(q), d["vocab_size"], num_top=o["num_top"])


_BUILDERS: dict[str, Builder] = {
    "linear": _linear,
    "gemm_w4a16": _w4a16,
    "gemm_w8a16": _w8a16,
    "gemm_int8": _int8,
    "gemm_fp8": _fp8,
    "quantize_activation": _quantize,
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "silu_and_mul": _gate,
    "gelu_and_mul": _gate,
    "rotary": _rotary,
    "qk_norm_rotary_kv_write": _fused,
    "kv_cache_write": _kv_cache_write,
    "slot_mapping": _slot_mapping,
    "paged_attention_prefill": _attention,
    "paged_attention_decode": _attention,
    "moe_route": _moe_route,
    "moe_experts": _moe_experts,
    "apply_penalties": _apply_penalties,
    "sample": _sampling,
    "filter_logits": _filter_logits,
    "gather_logprobs": _gather_logprobs,
}
