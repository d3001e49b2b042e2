"""The Triton kernels of quantized GEMMs, run by Triton's interpreter and compared with the float64 references."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from triton_kernels.impls._shared.unpack import pair_zero
from triton_kernels.lab import conformance
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

GEMMS = ("gemm_w4a16", "gemm_w8a16", "gemm_int8", "gemm_fp8")
OTHER_BLOCKS = (
    ("gemm_w4a16", "tiled", {"block_n": 128}),
    ("gemm_w4a16", "tiled", {"block_n": 256}),
    ("gemm_w4a16", "long_k", {"split_k": 4}),
    ("gemm_w4a16", "group_32", {"block_m": 32, "split_k": 3}),
    ("gemm_w8a16", "tiled", {"block_n": 128, "split_k": 2}),
    ("gemm_w8a16", "eight_bits", {"split_k": 4}),
    ("gemm_int8", "tiled", {"block_m": 16, "block_n": 16, "split_k": 3}),
    ("gemm_int8", "long_k", {"split_k": 4}),
    ("gemm_fp8", "tiled", {"block_m": 16, "block_n": 32, "split_k": 2}),
    ("gemm_fp8", "blocks", {"block_n": 128}),
    ("gemm_fp8", "long_blocks", {"split_k": 2}),
    ("gemm_fp8", "long_k", {"split_k": 2}),
    ("gemm_fp8", "long_k", {"block_m": 64}),
    ("gemm_fp8", "blocks", {"block_m": 64, "block_n": 128}),
    ("gemm_int8", "long_k", {"block_m": 128}),
    ("quantize_activation", "int8", {"block": 8}),
    ("quantize_activation", "e4m3", {"block": 64}),
    ("quantize_activation", "groups", {"block": 2}),
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def check(registry: Registry, op: str, impl: str, case: str, dtype: torch.dtype, options: dict[str, int] | None = None) -> None:
    [found] = [c for c in OPS[op].cases if c.name == case]
    result = conformance.check(registry.ops[op], registry.impls(op)[impl], found, dtype, interpret=True, options=options)
    assert result.ok and not result.skipped, f"{case}: {result.message}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("op", (*GEMMS, "quantize_activation"))
def test_every_case_conforms(registry: Registry, op: str, dtype: torch.dtype) -> None:
    for case in OPS[op].cases:
        if "bench" not in case.tags:
            check(registry, op, "triton", case.name, dtype)


@pytest.mark.parametrize("op", ["gemm_w4a16", "gemm_w8a16", "gemm_fp8"])
def test_one_order_of_k_gives_the_same_bits_in_any_batch(registry: Registry, op: str) -> None:
    for case in ("odd", "tiled"):
        check(registry, op, "triton_invariant", case, torch.float16)


@pytest.mark.parametrize(("op", "case", "options"), OTHER_BLOCKS, ids=str)
def test_other_blocks_and_splits(registry: Registry, op: str, case: str, options: dict[str, int]) -> None:
    check(registry, op, "triton", case, torch.float32, options)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_quotients_between_two_values_are_rounded_to_the_nearest_and_ties_to_even(registry: Registry, dtype: torch.dtype) -> None:
    """Every quantized value, every midpoint of two quantized values, and the numbers just beside it; the numbers that they stand
    for are torch's."""
    quantized = torch.arange(128, dtype=torch.uint8)
    values = quantized.view(dtype).float()
    values = values[values.isfinite()]
    middle = (values[1:] + values[:-1]) / 2
    up, down = torch.tensor(torch.inf), torch.tensor(0.0)
    x = torch.cat((values, middle, torch.nextafter(middle, up), torch.nextafter(middle, down), values[-1:] * 2))
    index = torch.arange(len(values))
    even = index[:-1] + index[:-1] % 2
    expected = torch.cat((index, even, index[1:], index[:-1], index[-1:])).to(torch.uint8)
    spec = Spec("cpu", "cpu", torch.float32, interpret=True)
    bound = registry.impls("quantize_activation")["triton"].bind(
        spec, {"static_scale": torch.ones(1, 1)}, {"out_dtype": dtype, "granularity": "token"}
    )
    got, _ = bound(torch.stack((x, -x)))
    assert torch.equal(got.view(torch.uint8), torch.stack((expected, expected | 128)))


@triton.jit
def _pair_zero_kernel(zero_ptr, out_ptr, KIND: tl.constexpr, dtype: tl.constexpr):
    zero = tl.load(zero_ptr + tl.arange(0, 16))
    tl.store(out_ptr + tl.arange(0, 16), pair_zero(zero, KIND, dtype).to(tl.float32))


@pytest.mark.parametrize(
    ("kind", "dtype", "base"),
    [
        ("int4", tl.bfloat16, 0x4300 << 16),
        ("int4", tl.float16, 1024),
        ("uint8", tl.bfloat16, 0x4B000000),
        ("uint8", tl.float16, 1024),
    ],
    ids=str,
)
def test_what_pairs_of_words_add_is_minus_their_base_and_zero_point(kind: str, dtype: tl.dtype, base: int) -> None:
    """The instructions that unpack pairs do not run here; ``test_unpack`` runs them with the numbers that are checked here."""
    zero, out = torch.arange(16.0), torch.empty(16)
    _pair_zero_kernel[(1,)](zero, out, kind, dtype)
    number = float(base) if base == 1024 else torch.tensor(base, dtype=torch.int32).view(torch.float32)
    assert torch.equal(out, -number - zero)


def test_every_value_of_eight_bits_is_unpacked_exactly(registry: Registry) -> None:
    """All 256 quantized values of each format against the values that torch gives them, through an identity as activations."""
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2):
        quantized = torch.arange(256, dtype=torch.uint8).view(dtype)
        quantized = quantized[quantized.float().isfinite()][None]
        x = torch.eye(quantized.shape[1])
        spec = Spec("cpu", "cpu", torch.float32, True, {"in_features": quantized.shape[1], "group_size": quantized.shape[1]})
        bound = registry.impls("gemm_w8a16")["triton"].bind(spec, {"weight": quantized, "scales": torch.ones(1, 1)})
        assert torch.equal(bound(x)[:, 0], quantized[0].float()), dtype
