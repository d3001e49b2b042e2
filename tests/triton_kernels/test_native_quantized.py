"""Quantized GEMMs on a CPU in C: against sums in float64, at every number of rows and for every instruction set that there is code
for; and what they make of activations."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.impl import Bound
from triton_kernels.impls._shared import native_call, native_quantized
from triton_kernels.impls._shared.native_code import library_reasons
from triton_kernels.impls._shared.recording import Arena, record
from triton_kernels.impls.gemm_int8.native import GemmInt8Native
from triton_kernels.impls.gemm_w4a16.native import W4A16Native
from triton_kernels.impls.gemm_w8a16.native import W8A16Native
from triton_kernels.impls.quantize_activation.native import QuantizeNative
from triton_kernels.ops.gemm import pack_int4
from triton_kernels.ops.quantize import reference as quantize_reference
from triton_kernels.registry import Registry
from triton_kernels.resolve import NoKernelError, resolve
from triton_kernels.spec import Spec

pytestmark = pytest.mark.skipif(bool(library_reasons("native_quantized.c", torch.float32)), reason="no C compiler")
ROWS = (0, 1, 2, 5, 6, 7, 13, 47, 48, 49, 300)
FLAGS = {"no_vnni": ("-mno-avx512vnni",), "no_avx512": ("-mno-avx512f",), "no_avx2": ("-mno-avx512f", "-mno-avx2")}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def integers(generator: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator)


def weight_only(
    bits: int, num_outputs: int, num_inputs: int, group: int, zeros: bool, dtype: torch.dtype
) -> tuple[Bound, torch.Tensor]:
    """A layer of random weights without bias, and these weights [N, K] in float64."""
    generator = torch.Generator().manual_seed(num_outputs * group)
    quantized = integers(generator, 0, 2**bits, num_outputs, num_inputs).to(torch.uint8)
    scales = (torch.rand(num_outputs, num_inputs // group, generator=generator) + 0.5).to(torch.bfloat16) / 2**bits
    shift = integers(generator, 0, 2**bits, *scales.shape).to(torch.uint8) if zeros else torch.full_like(scales, 2 ** (bits - 1))
    numbers = quantized.double() - shift.double().repeat_interleave(group, 1)
    weights = {"scales": scales, **({"zeros": shift} if zeros else {})}
    spec = Spec("cpu", "cpu", dtype)
    if bits == 4:
        layer = W4A16Native.bind(spec, {"qweight": pack_int4(quantized), **weights})
    else:
        layer = W8A16Native.bind(spec, {"weight": quantized if zeros else numbers.to(torch.int8), **weights})
    return layer, numbers * scales.double().repeat_interleave(group, 1)


def error(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def check_rows(layer: Bound, out: torch.Tensor, *inputs: torch.Tensor | None) -> None:
    """A row has the bits that it has alone and in another batch."""
    num_rows = len(out)
    if num_rows:
        assert torch.equal(layer(*(i if i is None else i[-1:] for i in inputs)), out[-1:])
        half = (i if i is None else i[num_rows // 2 :].repeat(2, 1) for i in inputs)
        assert torch.equal(layer(*half)[: num_rows - num_rows // 2], out[num_rows // 2 :])


@DTYPES
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_at_every_number_of_rows(bits: int, zeros: bool, dtype: torch.dtype) -> None:
    """Whole and partial tiles, blocks of rows, outputs that do not fill a panel; groups of all sizes, of several runs too."""
    generator = torch.Generator().manual_seed(1)
    for num_outputs, num_inputs, group in ((70, 40, 40), (64, 1024, 1024), (1, 8, 8), (193, 640, 64), (33, 96, 32), (65, 600, 20)):
        layer, weight = weight_only(bits, num_outputs, num_inputs, group, zeros, dtype)
        for num_rows in ROWS:
            x = torch.randn(num_rows, num_inputs + 3, generator=generator).to(dtype)[:, 2:-1]  # strided
            out = layer(x)
            assert error(out, x.double() @ weight.T) <= (1e-6 if dtype == torch.float32 else 4e-3), (num_outputs, group, num_rows)
            check_rows(layer, out, x)


@DTYPES
def test_eight_bit_products_at_every_number_of_rows(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    for num_outputs, num_inputs in ((70, 37), (64, 2052), (1, 4), (193, 640)):
        weight, scales = integers(generator, -128, 128, num_outputs, num_inputs).to(torch.int8), torch.rand(num_outputs, 1) + 0.5
        spec = Spec("cpu", "cpu", torch.float32, facts={"out_dtype": dtype})
        layer = GemmInt8Native.bind(spec, {"weight": weight, "scales": scales}, {"out_dtype": dtype})
        for num_rows in ROWS:
            x = integers(generator, -128, 128, num_rows, num_inputs + 5).to(torch.int8)[:, 1:-4]
            x_scale, x_zero = torch.rand(num_rows, 1) + 0.1, integers(generator, -128, 128, num_rows, 1).int()
            out = layer(x, x_scale, x_zero)
            exact = (x.double() - x_zero) @ weight.double().T * x_scale.double() * scales.double().T
            assert out.dtype == dtype and error(out, exact) <= (1e-6 if dtype == torch.float32 else 4e-3)
            check_rows(layer, out, x, x_scale, x_zero)


@pytest.mark.parametrize("flags", list(FLAGS))
@DTYPES
def test_every_instruction_set_gives_the_same_bits(dtype: torch.dtype, flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library_reasons("native_quantized.c", dtype, *FLAGS[flags]):
        pytest.skip("this machine's compiler has no such option")
    x = torch.randn(13, 640, generator=torch.Generator().manual_seed(3)).to(dtype)
    quantized, x_scale = quantize_reference(x, torch.int8)

    def results() -> list[torch.Tensor]:
        layers = [weight_only(bits, 70, 640, 64, zeros, dtype)[0] for bits in (4, 8) for zeros in (False, True)]
        weights = {
            "weight": integers(torch.Generator().manual_seed(4), -128, 128, 70, 640).to(torch.int8),
            "scales": torch.ones(1, 1),
        }
        products = GemmInt8Native.bind(Spec("cpu", "cpu", dtype), weights, {"out_dtype": dtype})
        return [*(layer(x) for layer in layers), products(quantized, x_scale, None)]

    here = results()
    for module in (native_call, native_quantized):
        library = module.library
        monkeypatch.setattr(module, "library", lambda s, d, *more, library=library: library(s, d, *FLAGS[flags], *more))
    assert all(torch.equal(a, b) for a, b in zip(here, results(), strict=True))


def test_sums_of_eight_bit_products_are_exact_where_f32_sums_are_not() -> None:
    """8000 products of 127 x 127 and one of 1 need 27 bits."""
    x = torch.full((1, 8001), 127, dtype=torch.int8)
    x[0, -1] = 1
    spec = Spec("cpu", "cpu", torch.float32)
    layer = GemmInt8Native.bind(spec, {"weight": x, "scales": torch.ones(1, 1)}, {"out_dtype": torch.float32})
    assert float(layer(x, torch.ones(1, 1), torch.full((1, 1), 127, dtype=torch.int32))) == -126.0


@pytest.mark.parametrize("bits", [4, 8])
def test_bfloat16_near_the_largest_of_its_run_is_not_rounded(bits: int) -> None:
    """Numbers down to 2^-7 of the largest, of any size: with whole numbers as weights the sum is exact, and rounded once."""
    generator = torch.Generator().manual_seed(5)
    quantized = integers(generator, 0, 2**bits, 5, 64).to(torch.uint8)
    for power in (-80, 0, 90):
        size = 2.0 ** integers(generator, -7, 1, 4, 64) * (1 + integers(generator, 0, 128, 4, 64) / 128)
        x = (size * (1 - 2 * integers(generator, 0, 2, 4, 64)) * 2.0**power).to(torch.bfloat16)
        x[:, 0] = 1.9921875 * 2.0**power
        weights = {"scales": torch.ones(5, 1), "zeros": torch.full((5, 1), 3, dtype=torch.uint8)}
        weights |= {"qweight": pack_int4(quantized)} if bits == 4 else {"weight": quantized}
        layer = (W4A16Native if bits == 4 else W8A16Native).bind(Spec("cpu", "cpu", torch.bfloat16), weights)
        exact = x.double() @ (quantized.double() - 3).T
        assert torch.equal(layer(x), exact.to(torch.bfloat16))


@DTYPES
def test_one_large_activation_leaves_the_others_their_digits(dtype: torch.dtype) -> None:
    """In its run too: its weights are zero, so that the result is of the others alone."""
    generator = torch.Generator().manual_seed(6)
    x, quantized = torch.randn(6, 256, generator=generator).to(dtype), integers(generator, -128, 128, 40, 256).to(torch.int8)
    x[:, 0], quantized[:, 0] = 1000, 0
    layer = W8A16Native.bind(Spec("cpu", "cpu", dtype), {"weight": quantized, "scales": torch.ones(40, 1)})
    assert error(layer(x), x.double() @ quantized.double().T) <= (1e-5 if dtype == torch.float32 else 1.5e-2)


@DTYPES
def test_infinities_and_nan_stay_in_their_row_and_are_seen_there(dtype: torch.dtype) -> None:
    layer, _ = weight_only(4, 20, 256, 64, False, dtype)
    x = torch.ones(4, 256, dtype=dtype)
    x[1, 70], x[3, 255] = float("inf"), float("nan")
    out = layer(x)
    assert out[[1, 3]].isnan().all() and torch.equal(out[[0, 2]], layer(torch.ones(2, 256, dtype=dtype)))
    x[:] = 0
    assert torch.equal(layer(x), torch.zeros(4, 20, dtype=dtype))


def test_act_order_gathers_the_columns_of_the_activations() -> None:
    generator = torch.Generator().manual_seed(7)
    perm, x = torch.randperm(192, generator=generator), torch.randn(3, 192, generator=generator)
    quantized, scales = integers(generator, -128, 128, 9, 192).to(torch.int8), torch.rand(9, 3, generator=generator)
    spec = Spec("cpu", "cpu", torch.float32)
    layer = W8A16Native.bind(spec, {"weight": quantized, "scales": scales, "perm": perm.int()})
    weight = quantized.double() * scales.double().repeat_interleave(64, 1)
    assert error(layer(x), x[:, perm].double() @ weight.T) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packed_weights_keep_the_scales_and_the_memory_of_the_checkpoint(dtype: torch.dtype) -> None:
    """Scales of every sign, subnormal ones of half precision too, are the numbers that they were."""
    scales = torch.tensor([[1.5, -0.1], [6e-8, 1.2e-5], [60000, 0.0]]).to(dtype).repeat(64, 1)[:128]
    qweight = pack_int4(torch.full((128, 64), 9, dtype=torch.uint8))  # minus 8: 1
    layer = W4A16Native.bind(Spec("cpu", "cpu", torch.float32), {"qweight": qweight, "scales": scales})
    x = torch.zeros(2, 64)
    x[0, 0] = x[1, 40] = 1
    assert torch.equal(layer(x), scales.T.float())
    held = [tensor for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in held) == 128 * 64 // 2 + scales.nbytes


@pytest.mark.parametrize("out_dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantized_values_at_and_beside_every_border(out_dtype: torch.dtype) -> None:
    """All values, all middles between neighbours, the numbers next to these, and random ones of all sizes."""
    every = torch.arange(256, dtype=torch.uint8).view(out_dtype).float()
    values = every[every.isfinite()].sort().values
    middles = (values[1:] + values[:-1]) / 2
    beside = [middles.nextafter(torch.tensor(end)) for end in (-1e9, 1e9)]
    random = torch.randn(10000, generator=torch.Generator().manual_seed(8)) * 10.0 ** torch.arange(-7, 3).repeat(1000)
    x, one = torch.cat([values, middles, *beside, random])[None], torch.ones(1, 1)
    params = {"out_dtype": out_dtype, "granularity": "token"}
    got, scale = QuantizeNative.bind(Spec("cpu", "cpu", torch.float32), {"static_scale": one}, params)(x)
    limit = 127.0 if out_dtype == torch.int8 else torch.finfo(out_dtype).max
    bounded = x.clamp(-limit, limit)
    expected = (bounded.round() if out_dtype == torch.int8 else bounded).to(out_dtype)
    assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8)) and scale.item() == 1.0


def test_a_chain_of_quantized_layers_is_one_call_of_a_recording() -> None:
    """Quantizing, products of 8 bits, weights of 4 and of 8 bits: a replay computes all of it again from new inputs."""
    spec, generator = Spec("cpu", "cpu", torch.bfloat16), torch.Generator().manual_seed(9)
    quantize = QuantizeNative.bind(spec, {}, {"out_dtype": torch.int8, "granularity": "token"})
    weight = integers(generator, -128, 128, 256, 64).to(torch.int8)
    products = GemmInt8Native.bind(spec, {"weight": weight, "scales": torch.full((256, 1), 0.01)}, {"out_dtype": torch.bfloat16})
    four, eight = weight_only(4, 64, 256, 64, True, torch.bfloat16)[0], weight_only(8, 64, 64, 64, False, torch.bfloat16)[0]
    x = torch.randn(3, 64, generator=generator).to(torch.bfloat16)

    def run() -> torch.Tensor:
        return eight(four(products(*quantize(x), None)))

    recording = record(run, Arena())
    assert (recording.num_kernels, len(recording.parts)) == (4, 1)
    for scale in (1.0, -30.0):
        x.copy_(torch.randn(3, 64, generator=generator) * scale)
        assert torch.equal(recording.replay(), run())


def test_auto_takes_them_on_a_cpu_and_says_what_they_cannot_do() -> None:
    registry, spec = Registry.load(), Spec("cpu", "cpu", torch.bfloat16)
    for op in ("gemm_w4a16", "gemm_w8a16", "gemm_int8", "quantize_activation"):
        assert resolve(registry, op, spec)[0].name == "native"
        assert resolve(registry, op, Spec("cpu", "cpu", torch.float16))[0].name != "native"
    with pytest.raises(NoKernelError, match=r"multiplies integers, not torch\.float8_e4m3fn"):
        resolve(registry, "gemm_w8a16", spec.with_facts(weight_dtype=torch.float8_e4m3fn), "native")
    with pytest.raises(NoKernelError, match="zero points with uint8 weights only"):
        resolve(registry, "gemm_w8a16", spec.with_facts(weight_dtype=torch.int8, symmetric=False), "native")
