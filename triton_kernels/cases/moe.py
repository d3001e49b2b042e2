"""Cases of ``moe_route`` and ``moe_experts``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn

FP8_LIMITS = {torch.float32: 4e-3, torch.float16: 4e-3, torch.bfloat16: 8e-3}
"""The hidden state becomes quantized values with three bits of mantissa: rounding all of it errs by about 2.6e-2, and one number in
a thousand that lies at the border of two quantized values, and falls to the other side, by 3e-3."""


def _route(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_experts: int,
    top_k: int,
    bias: bool = False,
    ties: bool = False,
    strided: bool = False,
    **static: Any,
) -> dict[str, Any]:
    pad = 8 if strided else 0
    logits = randn(generator, dtype, device, tokens, num_experts + pad, scale=2.0)[:, pad:]
    return {
        "logits": logits.round() if ties else logits,
        "bias": randn(generator, torch.float32, device, num_experts, scale=0.1) if bias else None,
        "top_k": top_k,
        "renormalize": True,
        "scoring": "softmax",
        "num_groups": 1,
        "top_groups": 1,
        "group_score": "max",
        "scaling": 1.0,
        **static,
    }


def _route_case(name: str, tags: frozenset[str], tokens: int, num_experts: int, top_k: int, **more: Any) -> Case:
    make = partial(_route, tokens=tokens, num_experts=num_experts, top_k=top_k, **more)
    return Case(name, make, tags, {"num_experts": num_experts, "top_k": top_k}, (tokens,))


def _experts(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden_size: int,
    inner_size: int,
    expert_start: int = 0,
    skewed: bool = False,
    strided: bool = False,
    scheme: str = "float",
    group: int = 0,
    zeros: bool = False,
    biases: bool = False,
    limit: float | None = None,
    weighs_input: bool = False,
) -> dict[str, Any]:
    """``expert_start`` > 0: these are the experts in the middle of three times as many; ``skewed``: low ids are frequent.
    ``scheme``, ``group`` (0: whole rows) and ``zeros`` say how the weights are quantized."""
    pad = 8 if strided else 0
    everywhere = num_experts * (3 if expert_start else 1)
    popularity = torch.rand(tokens, everywhere, generator=generator)
    if skewed:
        popularity += 3.0 / (1 + torch.arange(everywhere))
    ids = popularity.topk(top_k).indices.int() if tokens else torch.zeros(0, top_k, dtype=torch.int32)
    make = partial(_weight, generator, dtype, device, scheme, group, zeros, num_experts)
    w13, w13_scale, w13_zeros = make(2, inner_size, hidden_size)
    w2, w2_scale, w2_zeros = make(1, hidden_size, inner_size)
    return {
        "x": randn(generator, dtype, device, tokens, hidden_size + pad)[:, pad:],
        "weights": torch.rand(tokens, top_k, generator=generator).to(device),
        "ids": ids.to(device),
        "w13": w13,
        "w2": w2,
        "expert_start": expert_start,
        "w13_scale": w13_scale,
        "w2_scale": w2_scale,
        "w13_zeros": w13_zeros,
        "w2_zeros": w2_zeros,
        "w13_bias": randn(generator, dtype, device, num_experts, 2 * inner_size) if biases else None,
        "w2_bias": randn(generator, dtype, device, num_experts, hidden_size) if biases else None,
        "limit": limit,
        "alpha": 1.702,
        "weighs_input": weighs_input,
    }


def _weight(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    scheme: str,
    group: int,
    zeros: bool,
    num_experts: int,
    parts: int,
    rows: int,
    columns: int,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(weight or quantized values, scales, zeros) of ``parts`` matrices [rows, columns] for each expert."""
    shape, size = (num_experts, parts * rows, columns), columns**-0.5
    if scheme == "float":
        return randn(generator, dtype, device, *shape, scale=size), None, None
    if scheme == "w4a16":
        words = torch.randint(-(2**31), 2**31, (*shape[:2], columns // 8), generator=generator).int().to(device)
        groups = (*shape[:2], columns // group if group else 1)
        scales = (randn(generator, torch.float32, device, *groups).abs() + 0.5) * (size / 4)
        shift = torch.randint(0, 16, groups, generator=generator).to(torch.uint8).to(device) if zeros else None
        return words, scales.to(dtype), shift
    quantized = randn(generator, torch.float32, device, *shape, scale=16).to(torch.float8_e4m3fn)
    blocks = (num_experts, parts * -(-rows // 128), -(-columns // 128))
    scale_shape = blocks if scheme == "fp8_block" else (*shape[:2], 1)
    return quantized, (randn(generator, torch.float32, device, *scale_shape).abs() * 0.05 + 0.03) * size, None


def _experts_case(
    name: str, tags: frozenset[str], tokens: int, num_experts: int, top_k: int, hidden: int, inner: int, **more: Any
) -> Case:
    make = partial(_experts, tokens=tokens, num_experts=num_experts, top_k=top_k, hidden_size=hidden, inner_size=inner, **more)
    dims: dict[str, float] = {"num_experts": num_experts, "top_k": top_k, "hidden_size": hidden, "intermediate_size": inner}
    scheme = more.get("scheme", "float")
    dims |= quantized_dims(scheme, more.get("group", 0), more.get("zeros", False))
    return Case(name, make, tags, dims, (tokens,), relative=FP8_LIMITS if scheme.startswith("fp8") else None)


def quantized_dims(scheme: str, group: int = 0, zeros: bool = False) -> dict[str, float]:
    """What the cost function takes beyond the shape."""
    if scheme == "w4a16":
        return {"weight_bits": 4, "group_size": group, "scale_bytes": 2 + zeros}
    if scheme == "float":
        return {}
    blocks = {"group_size": 128, "group_rows": 128} if scheme == "fp8_block" else {}
    return {"weight_bits": 8, "scale_bytes": 4, "fp8_gemms": 1, **blocks}


_DEEPSEEK_V3_GROUPS: dict[str, Any] = {"num_groups": 8, "top_groups": 4, "group_score": "top2", "scaling": 2.5}

MOE_ROUTE_CASES = (
    _route_case("one_row", SMALL, 1, 8, 2),
    _route_case("tiled", TILED, 99, 60, 4, renormalize=False),
    _route_case("ties", SMALL, 23, 16, 5, ties=True),
    _route_case("sigmoid_bias", SMALL, 11, 32, 6, scoring="sigmoid", bias=True),
    _route_case("strided", SMALL, 7, 24, 3, strided=True),
    _route_case("groups", SMALL, 13, 60, 4, num_groups=5, top_groups=2, renormalize=False, scaling=16.0),
    _route_case("groups_of_two", SMALL, 9, 32, 6, num_groups=4, top_groups=2, group_score="top2"),
    _route_case("groups_bias", SMALL, 11, 64, 8, scoring="sigmoid", bias=True, **_DEEPSEEK_V3_GROUPS),
    _route_case("group_ties", SMALL, 23, 24, 5, ties=True, num_groups=6, top_groups=3, renormalize=False),
    _route_case("all_experts", SMALL, 3, 5, 5),
    _route_case("empty", SMALL, 0, 8, 2),
    *(_route_case(f"qwen3-30b-a3b_{tokens}", BENCH, tokens, 128, 8) for tokens in (64, 8192)),
    _route_case("deepseek-v3_64", BENCH, 64, 256, 8, scoring="sigmoid", bias=True, **_DEEPSEEK_V3_GROUPS),
)

MOE_EXPERTS_CASES = (
    _experts_case("one_row", SMALL, 1, 4, 2, 32, 16),
    _experts_case("tiled", TILED, 67, 3, 2, 67, 53, skewed=True),
    _experts_case("empty_experts", SMALL, 5, 16, 2, 40, 24),
    _experts_case("shard", SMALL, 21, 4, 3, 32, 32, expert_start=4),
    _experts_case("strided", SMALL, 9, 5, 2, 48, 37, strided=True),
    _experts_case("empty", SMALL, 0, 4, 2, 16, 16),
    _experts_case("biases", SMALL, 11, 4, 2, 48, 40, biases=True),
    _experts_case("clamped", TILED, 67, 3, 2, 67, 53, biases=True, limit=1.5, expert_start=3),
    _experts_case("weighs_input", SMALL, 13, 4, 2, 40, 24, weighs_input=True, biases=True),
    *(_experts_case(f"gpt-oss-20b_{tokens}", BENCH, tokens, 32, 4, 2880, 2880, biases=True, limit=7.0) for tokens in (1, 64)),
    *(_experts_case(f"qwen3-30b-a3b_{tokens}", BENCH, tokens, 128, 8, 2048, 768) for tokens in (1, 64, 4096)),
    *(_experts_case(f"mixtral-8x7b_{tokens}", BENCH, tokens, 8, 2, 4096, 14336) for tokens in (1, 64)),
    _experts_case("w4a16_one_row", SMALL, 1, 4, 2, 128, 64, scheme="w4a16", group=64),
    _experts_case("w4a16_tiled", TILED, 19, 3, 2, 392, 264, skewed=True, scheme="w4a16", zeros=True),
    _experts_case("w4a16_group_32", SMALL, 9, 4, 3, 224, 96, strided=True, scheme="w4a16", group=32, zeros=True),
    _experts_case("w4a16_shard", SMALL, 13, 3, 1, 384, 128, expert_start=3, scheme="w4a16", group=128),
    _experts_case("fp8_one_row", SMALL, 1, 4, 2, 37, 53, scheme="fp8_channel"),
    _experts_case("fp8_channel", SMALL, 6, 9, 8, 150, 70, strided=True, scheme="fp8_channel"),
    _experts_case("fp8_tiled", TILED, 19, 3, 2, 300, 264, skewed=True, scheme="fp8_block"),
    _experts_case("fp8_shard", SMALL, 13, 3, 1, 100, 150, expert_start=3, scheme="fp8_block"),
    *(
        _experts_case(f"qwen3-30b-a3b_w4a16_{tokens}", BENCH, tokens, 128, 8, 2048, 768, scheme="w4a16", group=128)
        for tokens in (1, 64, 4096)
    ),
    *(
        _experts_case(f"qwen3-30b-a3b_fp8_{tokens}", BENCH, tokens, 128, 8, 2048, 768, scheme="fp8_block")
        for tokens in (1, 64, 4096)
    ),
)
