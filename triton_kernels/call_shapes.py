"""The shape of a call: what of its arguments says how long it takes, without their contents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .cases import quantized_dims
from .cases.moe import quantized_dims as quantized_expert_dims

Lens = tuple[int, ...]
Described = tuple[dict[str, Any], dict[str, Any], Lens]
"""dims, options, q_lens."""


@dataclass(frozen=True)
class CallShape:
    """dims, q_lens and ctx_lens: as the op's cost function takes them, of dims those that differ from call to call of an engine
    (sizes of elements only where they are not the activations'). options: what else a call of the same speed needs."""

    dims: Mapping[str, float]
    options: Mapping[str, Any]
    q_lens: Lens
    ctx_lens: Lens = ()


def shape_reader(op: str, args: Mapping[str, Any]) -> Callable[[], CallShape] | None:
    """Of a call with the reference's arguments ``args``: what reads its shape. What lies in tensors (lengths of requests) is read
    anew each time, so that a recorded call can be asked at each replay. None for an op whose calls are not described."""
    describe = _DESCRIBED.get(op)
    if describe is None:
        return None
    dims, options, q_lens = describe(args)
    if "meta" not in args and "seq_lens" not in args:
        shape = CallShape(dims, options, q_lens)
        return lambda: shape
    source = vars(args["meta"]) if "meta" in args else args
    bounds, lengths = _viewer(source["cu_q"]), _viewer(source["seq_lens"])
    return lambda: CallShape(dims, options, tuple(np.diff(bounds()).tolist()), tuple(lengths().tolist()))


def described_ops() -> tuple[str, ...]:
    """The ops whose calls have a shape."""
    return tuple(_DESCRIBED)


def _viewer(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    if not tensor.is_cpu:
        return lambda: tensor.cpu().numpy()
    view = tensor.numpy()
    return lambda: view


def _name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _heads(q: torch.Tensor, k: torch.Tensor) -> dict[str, float]:
    return {"num_heads": q.shape[1], "num_kv_heads": k.shape[-2], "head_dim": q.shape[2]}


def _cache(kv: Any, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, Any]]:
    """dims and options of a cache that values of ``dtype`` are written to."""
    differs = kv.k.dtype != dtype
    dims = {"kv_bytes": kv.k.element_size()} if differs else {}
    return dims, {"page_size": kv.k.shape[1], "kv_dtype": _name(kv.k.dtype) if differs else None}


def _values(kv: Any) -> dict[str, float]:
    """dims of values that are not as wide as keys, or lie in them."""
    widths = {} if kv.v.shape[3] == kv.k.shape[3] else {"value_dim": kv.v.shape[3]}
    return {**widths, "aliased": 1} if kv.is_aliased else widths


def _quantized(args: Mapping[str, Any], width: int) -> tuple[dict[str, float], dict[str, Any]]:
    """dims and options of an op that may quantize its output."""
    kind, granularity = args.get("out_dtype"), args.get("granularity", "token")
    if kind is None:
        return {}, {}
    static = args.get("static_scale") is not None
    options = {"quantized_values": _name(kind), "granularity": granularity, "static_scale": float(static)}
    return quantized_dims(width, granularity, static), options


def _linear(args: Mapping[str, Any]) -> Described:
    out_features, in_features = args["weight"].shape
    bias = args.get("bias") is not None
    return {"in_features": in_features, "out_features": out_features}, {"bias": bias}, (_tokens(args["x"]),)


def _tokens(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1]


def _embedding(args: Mapping[str, Any]) -> Described:
    shape = args["weight"].shape
    half = len(shape) // 2  # rows and columns, each in two parts where the table is in panels
    vocab_size, hidden_size = math.prod(shape[:half]), math.prod(shape[half:])
    return {"hidden_size": hidden_size}, {"vocab_size": vocab_size}, (args["token_ids"].shape[0],)


def _rms_norm(args: Mapping[str, Any]) -> Described:
    x = args["x"]
    more, options = _quantized(args, x.shape[-1])
    residual = int(args.get("residual") is not None)
    return {"hidden_size": x.shape[-1], "residual": residual, **more}, options, (_tokens(x),)


def _layer_norm(args: Mapping[str, Any]) -> Described:
    dims, _, q_lens = _rms_norm({"x": args["x"], "residual": args.get("residual")})
    return dims, {"bias": args.get("bias") is not None}, q_lens


def _gate(args: Mapping[str, Any]) -> Described:
    x = args["x"]
    width = x.shape[-1] // 2
    more, options = _quantized(args, width)
    approximate = {"approximate": args["approximate"]} if "approximate" in args else {}
    return {"intermediate_size": width, **more}, {**options, **approximate}, (x.shape[0],)


def _rotary(args: Mapping[str, Any]) -> Described:
    options = {"rot_dim": args["cos_sin"].shape[-1], "style": args["style"]}
    return _heads(args["q"], args["k"]), options, (args["q"].shape[0],)


def _fused(args: Mapping[str, Any]) -> Described:
    kv, qkv = args["kv"], args["qkv"]
    more, options = _cache(kv, qkv.dtype)
    norms = "".join(part for part in "qk" if args.get(f"{part}_weight") is not None)
    options |= {"rot_dim": args["cos_sin"].shape[-1], "style": args["style"], "norms": norms}
    heads = {"num_heads": args["num_heads"], "num_kv_heads": args["num_kv_heads"], "head_dim": kv.k.shape[-1]}
    return {**heads, **more}, options, (qkv.shape[0],)


def _kv_cache_write(args: Mapping[str, Any]) -> Described:
    k = args["k"]
    more, options = _cache(args["kv"], k.dtype)
    options["static"] = args.get("k_scale") is not None
    return {"num_kv_heads": k.shape[1], "head_dim": k.shape[2], **_values(args["kv"]), **more}, options, (k.shape[0],)


def _slot_mapping(args: Mapping[str, Any]) -> Described:
    return {}, {"page_size": args["page_size"]}, ()


def _attention(args: Mapping[str, Any]) -> Described:
    q, kv = args["q"], args["kv"]
    more, options = _cache(kv, q.dtype)
    options |= {name: args.get(name) is not None for name in ("sinks", "alibi")}
    if (table := args.get("position_bias")) is not None:
        options["num_distances"] = table.shape[1]
    options |= {"softcap": args.get("softcap"), "causal": args.get("causal", True)}
    return {**_heads(q, kv.k), **_values(kv), "window": args.get("window") or 0, **more}, options, ()


def _moe_route(args: Mapping[str, Any]) -> Described:
    tokens, num_experts = args["logits"].shape
    options = {"renormalize": args["renormalize"], "scoring": args["scoring"], "bias": args.get("bias") is not None}
    if args.get("num_groups", 1) > 1:
        options |= {name: args[name] for name in ("num_groups", "top_groups", "group_score")}
    return {"num_experts": num_experts, "top_k": args["top_k"]}, options, (tokens,)


def _moe_experts(args: Mapping[str, Any]) -> Described:
    tokens, hidden = args["x"].shape
    num_experts, inner = args["w13"].shape[0], args["w13"].shape[1] // 2
    dims = {"num_experts": num_experts, "top_k": args["ids"].shape[1], "hidden_size": hidden, "intermediate_size": inner}
    scales, zeros = args.get("w13_scale"), args.get("w13_zeros") is not None
    scheme, group = "float", 0
    if scales is not None and args["w13"].dtype == torch.int32:
        scheme, group = "w4a16", hidden // scales.shape[2] if scales.shape[2] > 1 else 0
    elif scales is not None:
        scheme = "fp8_channel" if scales.shape[1:] == (2 * inner, 1) else "fp8_block"
    options = {"scheme": scheme, "group": group, "zeros": zeros}
    variant = {"biases": args.get("w13_bias") is not None, "limit": args.get("limit"), "weighs_input": args.get("weighs_input")}
    options |= {name: value for name, value in variant.items() if value}
    return {**dims, **quantized_expert_dims(scheme, group, zeros)}, options, (tokens,)


def _weight_only(args: Mapping[str, Any]) -> Described:
    """Of ``gemm_w4a16`` and ``gemm_w8a16``."""
    x, four = args["x"], "qweight" in args
    weight = args["qweight"] if four else args["weight"]
    in_features, num_groups = x.shape[-1], args["scales"].shape[1]
    dims = {"in_features": in_features, "out_features": weight.shape[0], "weight_bits": 4 if four else 8}
    dims["group_size"] = in_features // num_groups if num_groups > 1 else 0
    options = {"zeros": args.get("zeros") is not None, "act_order": args.get("perm") is not None}
    options["bias"] = args.get("bias") is not None
    return dims, options if four else {**options, "kind": _name(weight.dtype)}, (_tokens(x),)


def _scaled(args: Mapping[str, Any]) -> Described:
    """Of ``gemm_int8`` and ``gemm_fp8``."""
    x, weight = args["x"], args["weight"]
    dims = {"in_features": x.shape[1], "out_features": weight.shape[0], "act_bytes": 1, "scale_bytes": 4, "group_size": 0}
    options = {"bias": args.get("bias") is not None, "static": args["x_scale"].shape[0] == 1 and x.shape[0] > 1}
    if weight.dtype == torch.int8:
        return dims, {**options, "zero": args.get("x_zero") is not None}, (x.shape[0],)
    blocks = args["scales"].shape[1] > 1 or args["scales"].shape[0] not in (1, weight.shape[0])
    recipe = "block" if blocks else "tensor" if args["scales"].shape[0] == 1 else "channel"
    return dims, {**options, "recipe": recipe, "kind": _name(weight.dtype)}, (x.shape[0],)


def _quantize(args: Mapping[str, Any]) -> Described:
    x = args["x"]
    options = {"out_dtype": _name(args["out_dtype"]), "granularity": args.get("granularity", "token")}
    options |= {"static": float(args.get("static_scale") is not None), "zero": int(args.get("static_zero") is not None)}
    return {"hidden_size": x.shape[-1], "group_size": 0}, options, (_tokens(x),)


def _rows(args: Mapping[str, Any]) -> Described:
    """Of ops on logits, where each row is a request's."""
    num_rows, vocab_size = args["logits"].shape
    return {"vocab_size": vocab_size}, {}, (1,) * num_rows


def _penalties(args: Mapping[str, Any]) -> Described:
    dims, _, q_lens = _rows(args)
    drafts = args.get("drafts")
    options = {"bitmask": args["bitmask"] is not None, "num_bias": args["bias_ids"].shape[1]}
    return dims, {**options, "num_drafts": 0 if drafts is None else drafts.shape[1]}, q_lens


def _logprobs(args: Mapping[str, Any]) -> Described:
    dims, _, q_lens = _rows(args)
    return dims, {"num_top": args["num_top"]}, q_lens


_DESCRIBED: dict[str, Callable[[Mapping[str, Any]], Described]] = {
    "linear": _linear,
    "gemm_w4a16": _weight_only,
    "gemm_w8a16": _weight_only,
    "gemm_int8": _scaled,
    "gemm_fp8": _scaled,
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
    "apply_penalties": _penalties,
    "sample": _rows,
    "filter_logits": _rows,
    "gather_logprobs": _logprobs,
}
