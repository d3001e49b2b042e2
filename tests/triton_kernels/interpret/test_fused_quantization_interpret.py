"""The Triton kernels that quantize their own output, run by Triton's interpreter: the bits of the op and then the quantization."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

SPEC = Spec("cpu", "cpu", torch.float32, interpret=True)
CODES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
OPS_AND_BLOCKS = (
    ("rms_norm", {}), ("rms_norm", {"block": 128}), ("silu_and_mul", {}), ("silu_and_mul", {"block": 128}), ("gelu_and_mul", {}),
)  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def quantized(granularity: str, out_dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and params of a fused quantization."""
    if granularity == "static":
        return {"static_scale": torch.full((1, 1), 0.05)}, {"out_dtype": out_dtype}
    return {}, {"out_dtype": out_dtype, "granularity": granularity}


@pytest.mark.parametrize("granularity", ["token", "group", "static"])
@pytest.mark.parametrize(("op", "options"), OPS_AND_BLOCKS, ids=str)
def test_codes_of_float32_are_those_of_the_op_followed_by_quantize_activation(
    registry: Registry, op: str, options: dict[str, int], granularity: str
) -> None:
    random = torch.Generator().manual_seed(7)
    x = torch.randn(3, 600, generator=random) * 3
    x[1] = 0
    weights = {"weight": torch.randn(600, generator=random)} if op == "rms_norm" else {}
    params: dict[str, Any] = {"eps": 1e-6, "offset": 1.0} if op == "rms_norm" else {}
    call = (x, None) if op == "rms_norm" else (x,)
    found, quantize = registry.impls(op)["triton"], registry.impls("quantize_activation")["triton"]
    plain = found.bind(SPEC, weights, params, options)(*call)
    for out_dtype in CODES:
        more_weights, more_params = quantized(granularity, out_dtype)
        codes, scales = quantize.bind(SPEC, more_weights, more_params)(plain)
        got, got_scales = found.bind(SPEC, weights | more_weights, params | more_params, options)(*call)
        assert torch.equal(got_scales, scales)
        assert torch.equal(got.view(torch.uint8), codes.view(torch.uint8)), out_dtype


@pytest.mark.parametrize("granularity", ["token", "group", "static"])
def test_a_norm_without_rounding_has_the_reference_s_codes(registry: Registry, granularity: str) -> None:
    """Rows of +-s have the root mean square s: what is quantized is the weight, with a sign, exactly."""
    random = torch.Generator().manual_seed(3)
    sign = torch.randint(0, 2, (8, 256), generator=random) * 2 - 1
    x, weight = sign * 2.0 ** torch.arange(-3, 5)[:, None], torch.randn(256, generator=random)
    for out_dtype in CODES:
        weights, params = quantized(granularity, out_dtype)
        codes, scales = OPS["quantize_activation"].reference(sign * weight, **weights, **params)
        bound = registry.impls("rms_norm")["triton"].bind(SPEC, {"weight": weight, **weights}, {"eps": 0.0, **params})
        got, got_scales = bound(x, None)
        assert torch.equal(got_scales, scales)
        assert torch.equal(got.view(torch.uint8), codes.view(torch.uint8)), out_dtype


def test_a_norm_of_several_heads_per_token_has_scales_per_head(registry: Registry) -> None:
    x = torch.randn(4, 3, 40, generator=torch.Generator().manual_seed(2))[:, 1:]
    weight, params = torch.ones(40), {"eps": 1e-6, "out_dtype": torch.int8}
    codes, scales = registry.impls("rms_norm")["triton"].bind(SPEC, {"weight": weight}, params)(x, None)
    assert codes.shape == (4, 2, 40) and scales.shape == (4, 2, 1)
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    assert (codes * scales - exact).abs().max() <= 0.5001 * scales.max()
