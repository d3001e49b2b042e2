"""Tensors with elements 2^31 and more from their start, of which little is touched: what is addressed in 32 bits misses it.

Their memory is reserved and not filled, so that on a CPU they cost the pages that are used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.impl import Impl
from triton_kernels.lab import calls, conformance
from triton_kernels.op import Case, Op
from triton_kernels.ops import OPS

FAR = 2**31
PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM = 64, 8, 128
PAGE_ELEMENTS = 2 * PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM
LAST = FAR // PAGE_ELEMENTS + 3
ENDS = (1, LAST, 2, LAST - 1)
"""Pages at both ends of a cache whose keys and values lie side by side."""

ROW_TILES = (
    "linear",
    "gemm_w4a16",
    "gemm_w8a16",
    "gemm_int8",
    "gemm_fp8",
    "lora_shrink",
    "lora_expand",
    "paged_attention_prefill",
    "head_linear",
)
"""Ops whose kernels address tiles of rows in 64 bits, and rows within a tile in 32."""
KERNEL_OPTIONS = {
    **{(op, "triton"): {"block_m": 16} for op in ("linear", "gemm_w4a16", "gemm_w8a16", "gemm_int8", "gemm_fp8", "head_linear")},
    ("paged_attention_prefill", "pointer"): {"block_m": 16, "block_n": 16},
    ("paged_attention_prefill", "tma"): {"block_m": 16, "block_n": 16},
    ("paged_attention_decode", "splitkv"): {"block_n": 16, "chunk": 64},
    ("paged_attention_decode", "balanced"): {"block_n": 16, "chunk": 64},
}
"""Small tiles, for the interpreter."""


def far_cache(dtype: torch.dtype, device: torch.device) -> LayerKV:
    """A cache of more than 2^31 elements; the pages at its ends hold numbers, the null page NaN."""
    memory = torch.empty(LAST + 1, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype=dtype, device=device)
    assert memory.numel() > FAR
    generator = torch.Generator().manual_seed(0)
    for page in ENDS:
        memory[page] = torch.randn(memory.shape[1:], generator=generator).to(dtype).to(device)
    memory[0] = torch.nan
    return LayerKV(memory[:, 0], memory[:, 1])


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in rows so far apart that the last begins 2^31 elements or more behind the first."""
    num_rows = tensor.shape[0]
    stride = -(-FAR // (num_rows - 1) // 16) * 16 + 16
    row = torch.empty_strided(tensor.shape[1:], tensor.stride()[1:]).untyped_storage().nbytes() // 4
    memory = torch.empty((num_rows - 1) * stride + row, dtype=tensor.dtype, device=tensor.device)
    return memory.as_strided(tensor.shape, (stride, *tensor.stride()[1:])).copy_(tensor)


def is_spreadable(value: Any) -> bool:
    """Rows of numbers or quantized values; what belongs to a row as an integer lies side by side in every engine."""
    several = isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] > 1
    return several and value.dtype not in (torch.int32, torch.int64)


def far_case(op: Op) -> Case | None:
    """A case with rows that can be spread: of the fewest, but of the most where a tile of them has to stay within 2^31."""
    found = []
    for case in op.cases:
        if "bench" not in case.tags:
            args = case.make(torch.Generator().manual_seed(0), torch.float16, torch.device("cpu"))
            rows = [args[name].shape[0] for name in op.row_args if is_spreadable(args[name])]
            if rows:
                found.append((max(rows), case.name, case))
    choose = max if op.name in ROW_TILES else min
    return choose(found, key=lambda entry: entry[:2])[2] if found else None


def check_far_rows(op: Op, impl: Impl, dtype: torch.dtype, device: torch.device, interpret: bool = False) -> str | None:
    """Runs ``impl`` on the far rows of ``far_case``. Returns why it refuses them, or None."""
    case = far_case(op)
    assert case is not None
    args = calls.make_args(op, case, dtype, device)
    spec = calls.make_spec(op, args, dtype, device, interpret)
    if reasons := impl.unsupported(spec):
        return "; ".join(reasons)
    expected_args = calls.make_args(op, case, dtype, device)
    expected = calls.outputs(op.reference(**expected_args))
    got_args = calls.make_args(op, case, dtype, device)
    got_args |= {name: spread(got_args[name]) for name in op.row_args if is_spreadable(got_args[name])}
    bound = calls.bind(op, impl, spec, got_args, KERNEL_OPTIONS.get((op.name, impl.name)) if interpret else None)
    got = calls.call(op, bound, got_args)
    problems, _ = conformance.compare(op, args, got, got_args, expected, expected_args, op.limit(case, dtype))
    assert not problems, problems
    return None


def run(op: str, impl: Impl, args: dict[str, Any], interpret: bool) -> list[torch.Tensor] | str:
    """The outputs, or why the impl refuses."""
    first = next(t for name in OPS[op].call_args if isinstance(t := args[name], torch.Tensor | LayerKV))
    tensor = first if isinstance(first, torch.Tensor) else first.k
    spec = calls.make_spec(OPS[op], args, tensor.dtype, tensor.device, interpret)
    if reasons := impl.unsupported(spec):
        return "; ".join(reasons)
    bound = calls.bind(OPS[op], impl, spec, args, KERNEL_OPTIONS.get((op, impl.name)) if interpret else None)
    return calls.call(OPS[op], bound, args)


def check_attention(op: str, impl: Impl, dtype: torch.dtype, device: torch.device, interpret: bool = False) -> str | None:
    """Two requests whose pages lie at both ends of the cache."""
    prefill = op == "paged_attention_prefill"
    q_lens, lengths = ((3, 2) if prefill else (1, 2)), (PAGE_SIZE + 9, PAGE_SIZE + 5)
    q = torch.randn(sum(q_lens), NUM_KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    integers = {"dtype": torch.int32, "device": device}
    meta = AttentionMeta(
        torch.tensor([0, *q_lens], **integers).cumsum(0, dtype=torch.int32),
        torch.tensor(lengths, **integers),
        torch.tensor([ENDS[:2], ENDS[:1:-1]], **integers),
        max(q_lens),
        max(lengths),
    )
    args = {
        "q": q,
        "kv": far_cache(dtype, device),
        "meta": meta,
        "scale": HEAD_DIM**-0.5,
        "causal": True,
        "window": None,
        "softcap": None,
        "sinks": None,
        "alibi": None,
        "return_lse": False,
        "alibi_scale": None,
        "position_bias": None,
    }
    expected = OPS[op].reference(**args)
    got = run(op, impl, args | {"meta": replace(meta, workspace={})}, interpret)
    if isinstance(got, str):
        return got
    assert conformance.relative_error(got[0], expected) < OPS[op].tolerance.relative[dtype]
    return None


def check_cache_op(op: str, impl: Impl, dtype: torch.dtype, device: torch.device, interpret: bool = False) -> str | None:
    """kv_cache_write, qk_norm_rotary_kv_write and copy_blocks write at both ends what they write to a small cache."""
    kv = far_cache(dtype, device)
    generator = torch.Generator().manual_seed(1)
    slots = torch.tensor([page * PAGE_SIZE + offset for page, offset in zip(ENDS, (0, 63, 7, 11))], device=device)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    if op == "copy_blocks":
        src, dst = (torch.tensor(pages, device=device) for pages in (ENDS[:2], ENDS[:1:-1]))
        args: dict[str, Any] = {"kv": kv, "src": src, "dst": dst}
    elif op == "kv_cache_write":
        k, v = (numbers(len(ENDS), NUM_KV_HEADS, HEAD_DIM) for _ in "kv")
        args = {"k": k, "v": v, "kv": kv, "slot_mapping": slots}
    else:
        qkv, weight = numbers(len(ENDS), 3 * NUM_KV_HEADS * HEAD_DIM), numbers(HEAD_DIM)
        angles = torch.randn(32, HEAD_DIM // 2, generator=generator)
        args = {
            "qkv": qkv,
            "positions": torch.arange(len(ENDS), device=device),
            "kv": kv,
            "slot_mapping": slots,
            "num_heads": NUM_KV_HEADS,
            "num_kv_heads": NUM_KV_HEADS,
            "cos_sin": torch.cat([angles.cos(), angles.sin()], 1).to(device),
            "style": "neox",
            "q_weight": weight,
            "k_weight": weight,
            "eps": 1e-6,
            "offset": 0.0,
        }
    near = LayerKV(*(cache[list(ENDS)].clone() for cache in kv[:2]))  # the four pages, as pages 0 to 3
    places = torch.arange(len(ENDS), device=device)
    index = {"src": places[:2], "dst": places[2:].flip(0), "slot_mapping": places * PAGE_SIZE + slots % PAGE_SIZE}
    expected_args = args | {"kv": near} | {name: value for name, value in index.items() if name in args}
    OPS[op].reference(**expected_args)
    got = run(op, impl, args, interpret)
    if isinstance(got, str):
        return got
    limit = 0.0 if OPS[op].tolerance.exact else OPS[op].tolerance.relative[dtype]
    for cache, wanted in zip(kv[:2], near):
        assert conformance.relative_error(cache[list(ENDS)], wanted) <= limit
    return None


def check_embedding(impl: Impl, dtype: torch.dtype, device: torch.device, interpret: bool = False) -> None:
    """Rows at both ends of a table of more than 2^31 elements."""
    width = 4096
    table = torch.empty(FAR // width + 2, width, dtype=dtype, device=device)
    ids = torch.tensor([0, table.shape[0] - 1, table.shape[0] - 2], device=device)
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    table[ids] = rows
    got = run("embedding", impl, {"token_ids": ids, "weight": table, "vocab_start": 0}, interpret)
    assert not isinstance(got, str), got
    assert torch.equal(got[0], rows)
