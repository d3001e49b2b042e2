"""Elements 2^31 and more from a tensor's start, and results of more than 2^31 elements. Needs some 20 GB of device memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.impl import Impl
from triton_kernels.lab import calls, conformance
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

from . import offsets

pytestmark = pytest.mark.gpu
CUDA, DTYPE = torch.device("cuda"), torch.bfloat16
IMPLS = [i for i in Registry.load() if "cuda" in i.devices and i.origin.startswith("triton_kernels.impls.")]
CACHE = ("kv_cache_write", "qk_norm_rotary_kv_write", "copy_blocks")
LARGE = ("silu_and_mul", "gelu_and_mul", "rms_norm", "layer_norm", "quantize_activation", "linear", "embedding")
SHAPES = {"linear": (2**19 + 16, 64), "embedding": (2**19 + 16, 4096)}
"""Tokens and width of the input, where those of the activations and norms do not fit."""


def those(*ops: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("found", [i for i in IMPLS if i.op in ops], ids=lambda i: f"{i.op}-{i.name}")


def skip_if(refused: str | None) -> None:
    if refused:
        pytest.skip(refused)


@those("paged_attention_prefill", "paged_attention_decode")
def test_attention_reads_both_ends_of_a_cache(found: Impl) -> None:
    skip_if(offsets.check_attention(found.op, found, DTYPE, CUDA))


@those(*CACHE)
def test_both_ends_of_a_cache_are_written(found: Impl) -> None:
    skip_if(offsets.check_cache_op(found.op, found, DTYPE, CUDA))


@those("embedding")
def test_both_ends_of_a_table_are_read(found: Impl) -> None:
    offsets.check_embedding(found, DTYPE, CUDA)


@those(*(op for op in OPS if op not in offsets.ROW_TILES and offsets.far_case(OPS[op])))
def test_rows_may_lie_far_apart(found: Impl) -> None:
    skip_if(offsets.check_far_rows(OPS[found.op], found, DTYPE, CUDA))


@those(*LARGE)
def test_large_results_are_right_at_both_ends(found: Impl) -> None:
    """Against the reference of the first and the last rows: whole, it would not fit."""
    op = OPS[found.op]
    args = large_args(found.op)
    spec = calls.make_spec(op, args, DTYPE, CUDA)
    if reasons := found.unsupported(spec):
        pytest.skip("; ".join(reasons))
    ends = []
    for rows in (slice(0, 16), slice(-16, None)):
        part = {name: args[name][rows].clone() if name in op.row_args and args[name] is not None else args[name] for name in args}
        ends.append((rows, calls.outputs(op.reference(**part))))
    got = calls.call(op, calls.bind(op, found, spec, args), args)
    assert got[0].numel() > offsets.FAR
    numbers = op.tolerance.numbers or list
    for rows, expected in ends:
        for ours, theirs in zip(numbers([t[rows] for t in got]), numbers(expected), strict=True):
            assert conformance.relative_error(ours, theirs) <= op.tolerance.relative[DTYPE]


def large_args(op: str) -> dict[str, Any]:
    """Arguments whose result is larger than 2^31 elements; of the wide input only the ends are random, the rest is 0."""
    tokens, width = SHAPES.get(op, (2**19 + 16, 8192 if op.endswith("and_mul") else 4096))
    generator = torch.Generator(CUDA).manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=CUDA, dtype=DTYPE)

    if op == "embedding":
        ids = torch.randint(0, 1000, (tokens,), generator=generator, device=CUDA)
        return {"token_ids": ids, "weight": numbers(1000, width), "vocab_start": 0}
    x = torch.zeros(tokens, width, device=CUDA, dtype=DTYPE)
    x[:16], x[-16:] = numbers(16, width), numbers(16, width)
    given: dict[str, dict[str, Any]] = {
        "silu_and_mul": {},
        "gelu_and_mul": {"approximate": "tanh"},
        "rms_norm": {"residual": None, "weight": numbers(width), "eps": 1e-5, "offset": 0.0},
        "layer_norm": {"residual": None, "weight": numbers(width), "bias": numbers(width), "eps": 1e-5},
        "quantize_activation": {"out_dtype": torch.int8, "granularity": "token", "static_scale": None},
        "linear": {"weight": numbers(4096, width) * width**-0.5, "bias": None},
    }
    known = {"x": x, **given[op]}
    missing = dict.fromkeys(name for name in OPS[op].parameters if name not in known)
    return known | missing
