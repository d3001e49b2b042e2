"""Quantized GEMMs beyond conformance: references against plain arithmetic, the packed layout, reasons, exactness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from triton_kernels.devices import TARGETS
from triton_kernels.ops import OPS
from triton_kernels.ops.gemm import pack_int4, unpack_int4
from triton_kernels.registry import Registry
from triton_kernels.resolve import NoKernelError, resolve
from triton_kernels.spec import Spec

REGISTRY = Registry.load()
CPU = Spec("cpu", "cpu", torch.float32)


def test_the_reference_of_four_bit_products_is_a_sum_over_codes() -> None:
    random = np.random.default_rng(3)
    quantized, zeros = random.integers(0, 16, (5, 64)), random.integers(0, 16, (5, 2))
    scales, x, perm = random.uniform(0.5, 2, (5, 2)), random.standard_normal((3, 64)), random.permutation(64)
    words = [[sum(int(row[8 * w + i]) << 4 * i for i in range(8)) for w in range(8)] for row in quantized]
    qweight = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))
    weights = [[(quantized[n, k] - zeros[n, k // 32]) * scales[n, k // 32] for k in range(64)] for n in range(5)]
    expected = [[sum(weights[n][k] * row[perm[k]] for k in range(64)) for n in range(5)] for row in x]
    arrays = (scales, zeros.astype(np.uint8), perm.astype(np.int32))
    got = OPS["gemm_w4a16"].reference(torch.from_numpy(x), qweight, *map(torch.from_numpy, arrays))
    np.testing.assert_allclose(got.numpy(), np.array(expected), rtol=1e-12)
    assert torch.equal(pack_int4(unpack_int4(qweight)), qweight)
    assert np.array_equal(unpack_int4(qweight).numpy(), quantized)


def test_the_reference_of_float8_blocks_scales_each_block() -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 200, generator=random).to(torch.float8_e4m3fn)
    weight = torch.randn(130, 200, generator=random).to(torch.float8_e4m3fn)
    x_scale, scales = torch.rand(2, 2, generator=random), torch.rand(2, 2, generator=random)
    got = OPS["gemm_fp8"].reference(x, x_scale, weight, scales, None, torch.float64)
    for m, n in ((0, 0), (1, 127), (0, 128), (1, 129)):
        halves = [float(x[m, s].double() @ weight[n, s].double()) for s in (slice(0, 128), slice(128, 200))]
        expected = sum(half * float(x_scale[m, b]) * float(scales[n // 128, b]) for b, half in enumerate(halves))
        assert float(got[m, n]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_hold_the_codes_where_their_layout_says(bits: int) -> None:
    pytest.importorskip("triton")
    from triton_kernels.impls._shared.packed_weights import pack_words

    parts, quantized = 16 // bits, torch.randint(0, 2**bits, (70, 200), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    words = pack_words(quantized, bits)
    assert words.shape == (2, -(-200 // (32 * parts)), 64, 32) and words.is_contiguous()
    for n, k in ((0, 0), (1, 33), (63, 127), (64, 128), (69, 199)):
        block, within = divmod(k, 32 * parts)
        word = int(words[n // 64, block, n % 64, within % 32]) & 0xFFFF
        assert word >> bits * (within // 32) & (2**bits - 1) == int(quantized[n, k])


def test_packed_weights_take_the_bytes_that_their_format_implies() -> None:
    pytest.importorskip("triton")
    spec = Spec("cpu", "cpu", torch.float16, interpret=True)
    qweight, scales = torch.zeros(128, 32, dtype=torch.int32), torch.ones(128, 2, dtype=torch.float16)
    bound = REGISTRY.impls("gemm_w4a16")["triton"].bind(spec, {"qweight": qweight, "scales": scales})
    held = [t for t in vars(bound).values() if isinstance(t, torch.Tensor)]
    assert sum(t.nbytes for t in held) == 128 * 256 // 2 + 128 * 2 * 2


@pytest.mark.parametrize("op", ["gemm_w4a16", "gemm_w8a16", "gemm_fp8"])
def test_weights_dequantized_once_give_the_same_numbers(op: str) -> None:
    [case] = [c for c in OPS[op].cases if c.name == "tiled"]
    args = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    weights = {name: args[name] for name in OPS[op].bind_args if isinstance(args.get(name), torch.Tensor)}
    params = {"out_dtype": torch.float32} if op == "gemm_fp8" else {}
    call = [args[name] for name in OPS[op].call_args]
    found = REGISTRY.impls(op)["torch"]
    once, always = (found.bind(CPU, weights, params, {"dequantize": dequantize})(*call) for dequantize in (True, False))
    assert torch.equal(once, always)


def test_integer_products_are_exact_where_f32_sums_are_not() -> None:
    """A sum of 20000 products of 127 x 127 and one of 1 needs 29 bits."""
    x, weight = torch.full((1, 20001), 127, dtype=torch.int8), torch.full((1, 20001), 127, dtype=torch.int8)
    x[0, -1] = weight[0, -1] = 1
    one = torch.ones(1, 1)
    bound = REGISTRY.impls("gemm_int8")["int_mm"].bind(CPU, {"weight": weight, "scales": one}, {"out_dtype": torch.float64})
    zero = torch.full((1, 1), 127, dtype=torch.int32)
    assert float(bound(x, one, zero)) == -126.0


@pytest.mark.parametrize(
    ("op", "arch", "facts", "reason"),
    [
        ("gemm_fp8", "sm_80", {}, "sm_89 and later"),
        ("gemm_fp8", "gfx942", {}, "not those of the contract"),
        ("gemm_w4a16", "sm_90", {"in_features": 480, "group_size": 96}, "whole rows, not of 96"),
        ("gemm_w8a16", "sm_90", {"weight_dtype": torch.int8, "symmetric": False}, "zero points with uint8"),
        ("gemm_int8", "sm_90", {"recipe": "block"}, "not blocks"),
    ],
)
def test_what_a_kernel_cannot_do_is_a_reason(op: str, arch: str, facts: dict[str, object], reason: str) -> None:
    pytest.importorskip("triton")
    spec = Spec("cuda", arch, torch.bfloat16, facts=facts)
    with pytest.raises(NoKernelError, match=reason):
        resolve(REGISTRY, op, spec, "triton")


@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 4096])
def test_launch_configurations_fill_the_device_and_leave_no_split_empty(tokens: int) -> None:
    pytest.importorskip("triton")
    from triton_kernels.impls._shared import packed_gemm, scaled_gemm

    for arch in TARGETS:
        for num_out, num_in in ((4096, 4096), (576, 7168), (28672, 4096), (971, 200)):
            blocks = -(-num_in // 128)
            packed = [packed_gemm.launch_config(tokens, num_out, blocks, groups, torch.bfloat16, arch) for groups in (1, 4)]
            for config in (*packed, scaled_gemm.launch_config(tokens, num_out, num_in, arch)):
                per_split = -(-blocks // config.split_k)
                assert (config.split_k - 1) * per_split < blocks, "the last split has nothing to do"
                assert config.block_m >= min(tokens, 64) and 256 % config.block_n == 0


@pytest.mark.parametrize(
    ("op", "facts", "expected"),
    [
        ("linear", {}, "torch"),
        ("gemm_fp8", {"recipe": "tensor"}, "scaled_mm"),
        ("gemm_fp8", {"recipe": "channel"}, "scaled_mm"),
        ("gemm_fp8", {"recipe": "block"}, "triton"),
        ("gemm_w4a16", {}, "triton"),
    ],
)
def test_auto_takes_the_vendors_gemms_where_ours_are_not_measured(op: str, facts: dict[str, object], expected: str) -> None:
    pytest.importorskip("triton")
    spec = Spec("cuda", "sm_90", torch.bfloat16, facts=facts)
    assert resolve(REGISTRY, op, spec)[0].name == expected


def test_tiles_wider_than_a_block_of_scales_are_refused() -> None:
    pytest.importorskip("triton")
    weights = {"weight": torch.zeros(256, 256).to(torch.float8_e4m3fn), "scales": torch.ones(2, 2)}
    spec = Spec("cuda", "sm_90", torch.bfloat16, facts={"recipe": "block"})
    with pytest.raises(ValueError, match="block_n at most 128, not 256"):
        REGISTRY.impls("gemm_fp8")["triton"].bind(spec, weights, options={"block_n": 256})
