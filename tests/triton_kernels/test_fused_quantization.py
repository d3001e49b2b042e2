"""Norm and activations that quantize their own output: equal to what two ops give, taken by the quantized GEMMs, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.impl import Flags, impl
from triton_kernels.lab.conformance import check, relative_error
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.resolve import NoKernelError, resolve
from triton_kernels.spec import Spec

REGISTRY = Registry.load()
CPU = Spec("cpu", "cpu", torch.float32)
QUANTIZED = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
GRANULARITIES = ("token", "group", "static")


def arguments(out_dtype: torch.dtype, granularity: str) -> dict[str, Any]:
    if granularity == "static":
        return {"out_dtype": out_dtype, "static_scale": torch.full((1, 1), 0.05)}
    return {"out_dtype": out_dtype, "granularity": granularity}


def split(bound: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and params."""
    weights = {name: value for name, value in bound.items() if isinstance(value, torch.Tensor)}
    return weights, {name: value for name, value in bound.items() if name not in weights}


def assert_values_are_those_of_two_ops(
    op: str, name: str, spec: Spec, options: dict[str, int], out_dtype: torch.dtype, granularity: str
) -> None:
    """With float32 activations the output of the op alone is what the fused one quantizes."""
    random = torch.Generator().manual_seed(7)
    x = torch.randn(3, 600, generator=random) * 3
    x[1] = 0
    bound: dict[str, Any] = {"weight": torch.randn(600, generator=random), "eps": 1e-6, "offset": 1.0} if op == "rms_norm" else {}
    call = (x, None) if op == "rms_norm" else (x,)
    fused = arguments(out_dtype, granularity)
    run, quantize = REGISTRY.impls(op)[name], REGISTRY.impls("quantize_activation")[name]
    quantized, scales = quantize.bind(spec, *split(fused))(run.bind(spec, *split(bound), options)(*call))
    got, got_scales = run.bind(spec, *split({**bound, **fused}), options)(*call)
    assert torch.equal(got_scales, scales)
    assert torch.equal(got.view(torch.uint8), quantized.view(torch.uint8))


def assert_values_of_a_norm_without_rounding(name: str, spec: Spec, out_dtype: torch.dtype, granularity: str) -> None:
    """Rows of +-s have the root mean square s: what is quantized is the weight, with a sign, exactly."""
    random = torch.Generator().manual_seed(3)
    sign = torch.randint(0, 2, (8, 256), generator=random) * 2 - 1
    x, weight = sign * 2.0 ** torch.arange(-3, 5)[:, None], torch.randn(256, generator=random)
    fused = arguments(out_dtype, granularity)
    quantized, scales = OPS["quantize_activation"].reference(sign * weight, **fused)
    bound = REGISTRY.impls("rms_norm")[name].bind(spec, *split({"weight": weight, "eps": 0.0, **fused}))
    got, got_scales = bound(x, None)
    assert torch.equal(got_scales, scales)
    assert torch.equal(got.view(torch.uint8), quantized.view(torch.uint8))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("out_dtype", QUANTIZED, ids=str)
@pytest.mark.parametrize("op", ["rms_norm", "silu_and_mul", "gelu_and_mul"])
@pytest.mark.parametrize("name", ["reference", "torch"])
def test_float32_is_quantized_as_by_the_op_followed_by_quantize_activation(
    name: str, op: str, out_dtype: torch.dtype, granularity: str
) -> None:
    assert_values_are_those_of_two_ops(op, name, CPU, {}, out_dtype, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("out_dtype", QUANTIZED, ids=str)
@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_norm_without_rounding_has_the_quantized_values_of_its_weights(
    name: str, out_dtype: torch.dtype, granularity: str
) -> None:
    assert_values_of_a_norm_without_rounding(name, CPU, out_dtype, granularity)


@pytest.mark.parametrize(
    ("gemm", "out_dtype", "granularity"),
    [
        ("gemm_int8", torch.int8, "token"),
        ("gemm_fp8", torch.float8_e4m3fn, "token"),
        ("gemm_fp8", torch.float8_e4m3fn, "group"),
        ("gemm_fp8", torch.float8_e4m3fn, "static"),
        ("gemm_int8", torch.int8, "static"),
    ],
)
def test_the_quantized_gemms_take_values_and_scales_as_they_come(gemm: str, out_dtype: torch.dtype, granularity: str) -> None:
    random = torch.Generator().manual_seed(5)
    x, weight = torch.randn(4, 600, generator=random), (torch.randn(16, 300, generator=random) * 30).round().to(out_dtype)
    quantized, x_scale = OPS["silu_and_mul"].reference(x, **arguments(out_dtype, granularity))
    scales = torch.ones({"token": (16, 1), "static": (1, 1), "group": (1, 3)}[granularity])
    zero = {"x_zero": None} if gemm == "gemm_int8" else {}
    got = OPS[gemm].reference(
        x=quantized, x_scale=x_scale, weight=weight, scales=scales, bias=None, out_dtype=torch.float32, **zero
    )
    gate, up = x.double().chunk(2, dim=1)
    assert relative_error(got, (torch.nn.functional.silu(gate) * up) @ weight.double().T) < 0.06


def test_what_does_not_quantize_is_refused_or_passed_over() -> None:
    for op in ("rms_norm", "silu_and_mul"):
        spec = CPU.with_facts(**OPS[op].static_facts({"out_dtype": torch.int8}))
        assert resolve(REGISTRY, op, spec)[0].name == "torch"
        with pytest.raises(NoKernelError, match="does not take out_dtype"):
            resolve(REGISTRY, op, spec, "native")
        unknown = CPU.with_facts(**OPS[op].static_facts({"out_dtype": torch.int16}))
        interpreted = Spec("cpu", "cpu", torch.float32, True, unknown.facts)
        pytest.importorskip("triton")
        assert "int16" in REGISTRY.impls(op)["triton"].unsupported(interpreted)[0]


def test_a_plain_function_of_x_alone_serves_what_is_not_quantized() -> None:
    @impl("silu_and_mul", "mine", flags=Flags(deterministic=True))
    def mine(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    cases = [case for case in OPS["silu_and_mul"].cases if case.name in ("odd", "quantized_one_row")]
    results = {case.name: check(OPS["silu_and_mul"], mine, case, torch.float32) for case in cases}
    assert results["odd"].ok and not results["odd"].skipped
    assert results["quantized_one_row"].skipped and results["quantized_one_row"].message == "does not take out_dtype"


def test_rounding_to_the_activations_dtype_before_the_codes_is_found_out() -> None:
    @impl("silu_and_mul", "rounds")
    def rounds(x: torch.Tensor, **fused: Any) -> tuple[torch.Tensor, ...]:
        numbers: torch.Tensor = OPS["silu_and_mul"].reference(x)
        quantized: tuple[torch.Tensor, ...] = OPS["quantize_activation"].reference(numbers, **fused)
        return quantized

    for case in OPS["silu_and_mul"].cases:
        if case.name in ("quantized_tiled", "quantized_wide", "quantized_groups"):
            assert "output 0: error" in check(OPS["silu_and_mul"], rounds, case, torch.bfloat16).message
            assert check(OPS["silu_and_mul"], rounds, case, torch.float32).ok


def test_a_quantized_output_counts_one_byte_and_its_scales() -> None:
    norm, gate = OPS["rms_norm"].cost, OPS["silu_and_mul"].cost
    quantized = {"hidden_size": 256, "act_bytes": 2, "out_bytes": 1, "num_scales": 2}
    assert norm(quantized, [3], [3]).bytes == 3 * (2 * 256 + 256 + 8)
    assert norm({**quantized, "residual": 1}, [3], [3]).bytes == 3 * (3 * 2 * 256 + 256 + 8)
    assert gate({"intermediate_size": 256, "out_bytes": 1, "num_scales": 1}, [3], [3]).bytes == 3 * (4 * 256 + 256 + 4)
