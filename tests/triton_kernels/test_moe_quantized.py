"""Experts with quantized weights: the contract against numpy and torch's own GEMMs, its limits, and who refuses what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from triton_kernels.impl import impl
from triton_kernels.lab.conformance import check, relative_error
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

OP, REGISTRY = OPS["moe_experts"], Registry.load()
CASES = {case.name: case for case in OP.cases}
F8 = torch.float8_e4m3fn


def args_of(case: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return CASES[case].make(torch.Generator().manual_seed(5), dtype, torch.device("cpu"))


def numpy_weight(words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """A 4-bit quantized value is a nibble, low before high in each byte."""
    data = words.numpy().view(np.uint8)
    quantized = np.stack((data & 15, data >> 4), axis=-1).reshape(*words.shape[:2], -1).astype(np.float64)
    group = quantized.shape[-1] // scales.shape[-1]
    return torch.from_numpy((quantized - zeros.numpy().repeat(group, 2)) * scales.numpy().repeat(group, 2))


@pytest.mark.parametrize("case", ["w4a16_group_32", "w4a16_tiled"])
def test_int4_experts_are_experts_with_the_weights_that_numpy_decodes(case: str) -> None:
    args = args_of(case)
    wide = {name: numpy_weight(args[name], args[f"{name}_scale"], args[f"{name}_zeros"]) for name in ("w13", "w2")}
    expected = OP.reference(args["x"].double(), args["weights"], args["ids"], **wide)
    assert relative_error(OP.reference(**args), expected) < 1e-6


def test_fp8_experts_are_torchs_scaled_products() -> None:
    """One expert: x and the hidden state scaled by their rows' largest number, GEMMs by ``torch._scaled_mm``."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(5, 64, generator=generator)
    w13, w2 = (torch.randn(1, *shape, generator=generator).mul(16).to(F8) for shape in ((96, 64), (64, 48)))
    s13, s2 = (torch.rand(1, rows, 1, generator=generator) * 0.01 + 0.005 for rows in (96, 64))

    def gemm(rows: torch.Tensor, quantized: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        scale = rows.abs().amax(1, keepdim=True) / 448
        return torch._scaled_mm((rows / scale).to(F8), quantized[0].T, scale, scales[0].T, out_dtype=torch.bfloat16).float()

    gate, up = gemm(x, w13, s13).chunk(2, dim=1)
    expected = gemm(torch.nn.functional.silu(gate) * up, w2, s2)
    ones, ids = torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int32)
    got = OP.reference(x, ones, ids, w13, w2, 0, s13, s2)
    assert relative_error(got, expected) < 2e-2  # bfloat16 between the GEMMs moves some quantized values
    assert relative_error(OP.reference(x, ones, ids, w13, w2, 0, s13.roll(1, 1), s2), expected) > 0.1


def test_blocks_of_gate_and_up_are_counted_apart() -> None:
    """150 rows are two blocks, so that row 0 of up has the scale of block 2, not that of gate's last rows."""
    args = args_of("fp8_shard")
    scales = args["w13_scale"]
    assert args["w13"].shape[1] == 300 and scales.shape[1] == 4
    of_row = torch.tensor([*[0] * 128, *[1] * 22, *[2] * 128, *[3] * 22])
    wide13 = args["w13"].double() * scales[:, of_row].double()
    wide2 = args["w2"].double() * args["w2_scale"].double().repeat_interleave(128, 2)[:, :1, :150]
    expected = OP.reference(args["x"].double(), args["weights"], args["ids"], wide13, wide2, args["expert_start"])
    assert relative_error(OP.reference(**args), expected) < 0.06, "activations of three bits of mantissa"


@impl("moe_experts", "unrounded")
def unrounded(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, **bound: Any) -> torch.Tensor:
    """Leaves the activations as they are."""
    quantized = {name: bound[name].double() * bound[f"{name}_scale"].double() for name in ("w13", "w2")}
    return OP.reference(x.double(), weights, ids, **quantized, expert_start=bound["expert_start"]).to(x.dtype)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_activations_that_are_not_quantized_are_found_out(dtype: torch.dtype) -> None:
    assert "is above" in check(OP, unrounded, CASES["fp8_channel"], dtype).message


def test_cost_counts_bits_and_scales() -> None:
    """One token: eight of 128 experts, each 3 * 2048 * 768 weights; activations are 2 * 2048 numbers of two bytes."""
    weights, act = 8 * 3 * 2048 * 768, 2 * 2048 * 2
    expected = {"": 2 * weights, "w4a16_": weights / 2 + 2 * weights / 128, "fp8_": weights + 4 * weights / 128**2}
    for kind, moved in expected.items():
        case = CASES[f"qwen3-30b-a3b_{kind}1"]
        cost = OP.cost(case.dims, case.q_lens, case.ctx_lens)
        assert cost.bytes == pytest.approx(moved + act) and cost.flops == 2 * weights


def reasons(name: str, arch: str, dtype: torch.dtype = torch.bfloat16, **facts: Any) -> str:
    facts = {"hidden_size": 2048, "intermediate_size": 768, "weight_dtype": dtype, **facts}
    return "; ".join(REGISTRY.impls("moe_experts")[name].unsupported(Spec("cuda", arch, dtype, facts=facts)))


def test_who_refuses_what() -> None:
    pytest.importorskip("triton")
    assert not reasons("grouped_mm", "sm_90")
    assert "a loop" in reasons("grouped_mm", "sm_80")
    assert "bfloat16" in reasons("grouped_mm", "sm_90", torch.float16)
    assert "16 bytes" in reasons("grouped_mm", "sm_90", intermediate_size=770)
    assert "w4a16" in reasons("grouped_mm", "sm_90", scheme="w4a16")
    assert not reasons("triton", "sm_90", scheme="fp8_block", weight_dtype=F8)
    assert "sm_89" in reasons("triton", "sm_80", scheme="fp8_channel", weight_dtype=F8)
    assert "gfx942" in reasons("triton", "gfx942", scheme="fp8_block", weight_dtype=F8)
    assert "e5m2" in reasons("triton", "sm_90", scheme="fp8_block", weight_dtype=torch.float8_e5m2)
    groups = {"scheme": "w4a16", "group_size": 128, "weight_dtype": torch.int32}
    assert not reasons("triton", "gfx942", **groups, inner_group_size=768)
    assert "48" in reasons("triton", "sm_90", **groups, inner_group_size=48)
