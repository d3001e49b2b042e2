"""Parts of the attention kernels, run by Triton's interpreter: quantized numbers, and how requests are cut."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from triton_kernels.impls._shared.attention_loop import _split_scales, _to
from triton_kernels.impls.paged_attention_decode._call import Cuts
from triton_kernels.impls.paged_attention_decode._kernels import split_plan


@triton.jit
def _convert_kernel(source, target, C: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(target + at, _to(tl.load(source + at), tl.float16, True, C))


@triton.jit
def _split_kernel(scales, log2, inverse, rest, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b, c = _split_scales(tl.load(scales + at))
    tl.store(log2 + at, a)
    tl.store(inverse + at, b)
    tl.store(rest + at, c)


@triton.jit
def _plan_kernel(lengths, sizes, firsts, counts, window, CUTS: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    size, first, count = split_plan(1, tl.load(lengths + at), window, CUTS)
    tl.store(sizes + at, size)
    tl.store(firsts + at, first)
    tl.store(counts + at, count)


class NoPtx:
    PTX = False


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_every_quantized_value_becomes_a_half_exactly(dtype: torch.dtype) -> None:
    """But subnormal numbers and NaN of float8, which the interpreter converts wrongly and a GPU's instruction rightly."""
    source = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    target = torch.empty(256, dtype=torch.float16)
    _convert_kernel[(1,)](source, target, NoPtx)
    expected = source.double()
    smallest = torch.finfo(dtype).tiny if dtype.is_floating_point else 0
    kept = ((expected.abs() >= smallest) | (expected == 0)) & ~expected.isnan()
    assert int(kept.sum()) >= 240
    assert torch.equal(target.double()[kept], expected[kept])


def test_scales_are_split_exactly() -> None:
    scales = torch.tensor([1e-10, 0.037, 1.0, 1.9999999, 2.0, 448.0, 3e30, 2.0**-80])
    log2, inverse, rest = torch.empty(3, 8)
    _split_kernel[(1,)](scales, log2, inverse, rest, 8)
    assert torch.equal(inverse.double(), torch.exp2(-log2.double()))
    assert torch.equal(rest.double() * torch.exp2(log2.double()), scales.double())
    assert bool((rest >= 1).all()) and bool((rest < 2).all())


@pytest.mark.parametrize("max_splits", [64, 256])
@pytest.mark.parametrize("window", [None, 5000])
def test_splits_cover_what_a_request_sees(max_splits: int, window: int | None) -> None:
    lengths = torch.tensor([0, 1, 256, 257, 16 * 1024, 32 * 1024, 65 * 1024, 131072], dtype=torch.int32)
    sizes, firsts, counts = torch.empty(3, 8, dtype=torch.int32)
    _plan_kernel[(1,)](lengths, sizes, firsts, counts, window or 0, Cuts(window is not None, 4, 16, 256, max_splits), 8)
    low = lengths * 0 if window is None else (lengths - window).clamp(min=0)
    assert bool((firsts * sizes <= low).all()) and bool(((firsts + counts) * sizes >= lengths).all())
    assert not (sizes % 256).any() and int(counts.min()) == 1 and int(counts.max()) <= max_splits
    if window is None:
        assert int(counts[5]) == (128 if max_splits == 256 else 43), "one KV head at 32k fills a device of 132"
