"""The Triton kernels of the simple ops, run by Triton's interpreter and compared with the float64 references."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from triton_kernels.lab import calls, conformance
from triton_kernels.op import Case
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

CHECKED_BESIDE = {
    *(f"{op}:triton" for op in ("apply_penalties", "sample", "filter_logits", "gather_logprobs", "moe_route", "moe_experts")),
    *(f"{op}:triton" for op in ("gemm_w4a16", "gemm_w8a16", "gemm_int8", "gemm_fp8", "quantize_activation")),
    *(f"{op}:triton_invariant" for op in ("gemm_w4a16", "gemm_w8a16", "gemm_fp8", "moe_experts")),
    *(f"{op}:triton" for op in ("gated_delta_rule", "ssd_scan", "selective_scan")),
    *(f"paged_attention_{name}" for name in ("prefill:pointer", "prefill:tma", "decode:splitkv", "decode:balanced")),
}
"""In the files beside this one, on fewer cases or in smaller tiles, because they are slow here."""
REFUSED = {"embedding:triton": {"panels", "shard_in_panels"}}
"""Cases that a kernel refuses: a packed table belongs to the C kernels of a CPU."""
REGISTRY = Registry.load()
KERNELS = {f"{i.op}:{i.name}": i for i in REGISTRY if i.is_triton and i.origin.startswith("triton_kernels.")}
SMALL_BLOCKS = (
    ("linear", {"block_m": 16, "block_n": 16, "block_k": 16}),
    ("linear", {"block_m": 32, "block_n": 32, "block_k": 16, "split_k": 4}),
    ("embedding", {"block": 32}),
    ("rms_norm", {"block": 32}),
    ("layer_norm", {"block": 32}),
    ("gated_rms_norm", {"block": 32}),
    ("causal_conv1d", {"block_t": 16, "block_c": 32}),
    ("rotary", {"block_heads": 1}),
    ("silu_and_mul", {"block": 32}),
    ("gelu_and_mul", {"block": 32}),
    ("kv_cache_write", {"block_heads": 2}),
    ("copy_blocks", {"block_rows": 2}),
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return REGISTRY


def runnable(op: str) -> Iterator[Case]:
    return (case for case in OPS[op].cases if "bench" not in case.tags)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(KERNELS.keys() - CHECKED_BESIDE))
def test_every_case_conforms(name: str, dtype: torch.dtype) -> None:
    """A new kernel is among them, unless it is entered above."""
    for case in runnable(KERNELS[name].op):
        result = conformance.check(OPS[KERNELS[name].op], KERNELS[name], case, dtype, interpret=True)
        assert result.ok, f"{case.name}: {result.message}"
        assert result.skipped == (case.name in REFUSED.get(name, ())), f"{case.name}: {result.message}"


def test_kernels_that_are_checked_beside_exist() -> None:
    assert set(KERNELS) > CHECKED_BESIDE


@pytest.mark.parametrize(("op", "options"), SMALL_BLOCKS, ids=lambda value: value if isinstance(value, str) else str(value))
def test_three_and_more_blocks_on_every_axis(registry: Registry, op: str, options: dict[str, int]) -> None:
    """Options make blocks so small that the tiled cases have several on every axis that a kernel cuts."""
    cases = [case for case in runnable(op) if "tiled" in case.tags]
    assert cases, f"{op} has no case tagged tiled"
    for case in cases:
        result = conformance.check(
            registry.ops[op], registry.impls(op)["triton"], case, torch.float32, interpret=True, options=options
        )
        assert result.ok and not result.skipped, f"{case.name}: {result.message}"


def test_linear_multiplies_bf16_in_the_interpreter(registry: Registry) -> None:
    """The interpreter's own bf16 GEMM works on bit patterns and is off by many orders of magnitude."""
    op = registry.ops["linear"]
    result = conformance.check(op, registry.impls("linear")["triton"], op.cases[0], torch.bfloat16, interpret=True)
    assert result.error < 8e-3  # one unit in the last place: it truncates when it stores bf16


def test_wide_rows_keep_their_residual(registry: Registry) -> None:
    """Rows of more than one block read back what they stored: the normalized values belong to the rounded sum."""
    x, residual = torch.randn(2, 3, 100, generator=torch.Generator().manual_seed(0)).half()
    weight, expected_residual = torch.ones(100, dtype=torch.float16), residual.clone()
    expected = registry.ops["rms_norm"].reference(x, expected_residual, weight, 1e-6)
    args = {"x": x, "residual": residual, "weight": weight, "eps": 1e-6, "offset": 0.0}
    spec = calls.make_spec(registry.ops["rms_norm"], args, torch.float16, torch.device("cpu"), interpret=True)
    impl = registry.impls("rms_norm")["triton"]
    out = impl.bind(spec, {"weight": weight}, {"eps": 1e-6, "offset": 0.0}, {"block": 32})(x, residual)
    assert torch.equal(residual, expected_residual)
    assert conformance.relative_error(out, expected) < 1e-3
