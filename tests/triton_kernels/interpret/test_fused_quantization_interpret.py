"""The Triton kernels that quantize their own output, run by Triton's interpreter: the bits of the op and then the quantization."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.spec import Spec

from ..test_fused_quantization import (
    GRANULARITIES,
    QUANTIZED,
    REGISTRY,
    assert_values_are_those_of_two_ops,
    assert_values_of_a_norm_without_rounding,
)

SPEC = Spec("cpu", "cpu", torch.float32, interpret=True)
OPS_AND_BLOCKS = (
    ("rms_norm", {}),
    ("rms_norm", {"block": 128}),
    ("silu_and_mul", {}),
    ("silu_and_mul", {"block": 128}),
    ("gelu_and_mul", {}),
)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("op", "options"), OPS_AND_BLOCKS, ids=str)
def test_float32_is_quantized_as_by_the_op_followed_by_quantize_activation(
    op: str, options: dict[str, int], granularity: str
) -> None:
    for out_dtype in QUANTIZED:
        assert_values_are_those_of_two_ops(op, "triton", SPEC, options, out_dtype, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_norm_without_rounding_has_the_quantized_values_of_its_weights(granularity: str) -> None:
    for out_dtype in QUANTIZED:
        assert_values_of_a_norm_without_rounding("triton", SPEC, out_dtype, granularity)


def test_a_norm_of_several_heads_per_token_has_scales_per_head() -> None:
    x = torch.randn(4, 3, 40, generator=torch.Generator().manual_seed(2))[:, 1:]
    weight, params = torch.ones(40), {"eps": 1e-6, "out_dtype": torch.int8}
    quantized, scales = REGISTRY.impls("rms_norm")["triton"].bind(SPEC, {"weight": weight}, params)(x, None)
    assert quantized.shape == (4, 2, 40) and scales.shape == (4, 2, 1)
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    assert (quantized * scales - exact).abs().max() <= 0.5001 * scales.max()
